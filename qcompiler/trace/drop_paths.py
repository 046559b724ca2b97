"""What the user's code drops in training alone follows the mode of its module, in training and in the int8 model.

A branch on `self.training` is followed as in training. Two of them need not be: modules that drop whole samples (stochastic depth, as
timm and transformers write it) are one op, and a share of dropout that was chosen by such a branch is multiplied by the flag.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from qcompiler.trace.mode import NAME, Training
from qcompiler.trace.proxy import Args, Kwargs
from qcompiler.trace.recording import Recording

_SHARES = ("drop_prob", "p", "drop_path", "drop_rate", "prob")  # what such modules call it
_ROWS = 64  # samples that it is tried on
_SEEN = 0.2  # a share from which on some of these are dropped for certain
DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
_POSITION = 4  # of dropout_p among the arguments of an attention


def dropped_share(module: nn.Module) -> float | None:
    """The share of samples that a module drops in training, where that is all it does; in eval mode it gives what it takes."""
    share = next((vars(module)[name] for name in _SHARES if isinstance(vars(module).get(name), float)), None)
    if share is None or not 0 < share < 1 or any(module.children()) or module.state_dict():
        return None
    x, before = torch.ones(_ROWS, 2, 3), vars(module)[NAME]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            vars(module)[NAME] = True
            trained = type(module).forward(module, x)
            vars(module)[NAME] = False
            evaluated = type(module).forward(module, x)
    except Exception:  # it takes something else
        return None
    finally:
        vars(module)[NAME] = before
    if not all(isinstance(y, torch.Tensor) and y.shape == x.shape for y in (trained, evaluated)) or not torch.equal(evaluated, x):
        return None
    kept = trained[:, :1, :1]
    dropped = kept == 0
    whole = torch.equal(trained, kept.expand_as(trained)) and bool((dropped.any() or share < _SEEN) and not dropped.all())
    scaled = torch.allclose(kept[~dropped], torch.tensor(1 / (1 - share)))
    return share if whole and scaled else None


def in_mode(recorder: Recording, function: object, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    """The arguments of a dropout that stands in a module which has asked whether it trains."""
    attends = function is F.scaled_dot_product_attention
    if not attends and function not in DROPOUTS:
        return args, kwargs
    path = recorder.scopes[-1][0] if recorder.scopes else ""
    flag = vars(recorder.model.get_submodule(path)).get(NAME)
    asked = any(remark.kind == "training-branch" and remark.where.module_path == path for remark in recorder.remarks)
    if type(flag) is not Training or not asked:
        return args, kwargs
    if not attends:
        return args, kwargs if len(args) > 2 or type(kwargs.get(NAME, True)) is not bool else {**kwargs, NAME: flag}
    share: Any = args[_POSITION] if len(args) > _POSITION else kwargs.get("dropout_p", 0.0)
    if type(share) is not float or share == 0:
        return args, kwargs
    lively = recorder.call("call_function", operator.mul, (flag, share), {})
    if len(args) > _POSITION:
        return (*args[:_POSITION], lively, *args[_POSITION + 1 :]), kwargs
    return args, {**kwargs, "dropout_p": lively}
