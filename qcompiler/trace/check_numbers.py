"""Whether a graph with numbers as inputs computes what the model computes.

A branch on the type of a number (`type(n) is int`) leaves no trace: what stands for a number is none. One forward of both on the
example tells.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from qcompiler.trace.state import untouched
from qcompiler.trace.tracer import Tracer


def agrees(tracer: Tracer, gm: fx.GraphModule, args: tuple[object, ...], kwargs: Mapping[str, object]) -> bool:
    """Whether graph and model give the same result on the example. In training it is not asked: a forward would change statistics."""
    if not tracer.numbers or not tracer.free_numbers or tracer.model.training:
        return True
    try:
        with untouched(tracer.model):
            return _same(*(_run(module, args, kwargs) for module in (tracer.model, copy.deepcopy(gm))))
    except Exception:  # the arguments cannot be copied, or one of the two cannot be called so
        return False


def _run(module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Any:
    """The result on copies of the arguments."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        one, named = _copied((args, dict(kwargs)))
        return module(*one, **named)


def _copied(given: object) -> Any:
    return pytree.tree_map(lambda v: v.detach().clone() if isinstance(v, torch.Tensor) else copy.deepcopy(v), given)


def _same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        if not isinstance(b, torch.Tensor) or a.shape != b.shape or a.dtype is not b.dtype:
            return False
        size = float(a.abs().nan_to_num().max()) if a.is_floating_point() and a.numel() else 0.0
        return torch.allclose(a, b, rtol=1e-3, atol=1e-4 * size, equal_nan=True)  # what is decomposed rounds otherwise
    if dataclasses.is_dataclass(a):
        return all(_same(getattr(a, field.name), getattr(b, field.name, None)) for field in dataclasses.fields(a))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b)
