"""What computes as in training in a graph of a model in eval mode: ops that draw random numbers, and statistics of the batch at hand."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache

from torch import fx, nn
from torch.fx.operator_schemas import get_signature_for_torch_op

from qcompiler.ops.table import Table

NAMES = ("training", "train")  # what functions of torch call the argument
DRAWS = ("it draws random numbers at each call though the model is in eval mode, so no two calibrations agree: if it is a leftover of "
         "training, write training=self.training")  # fmt: skip
TRAINS = ("it computes as in training ({name}=True) though the model is in eval mode: what else is in the batch, or chance, changes its "
          "results and the ranges behind it; if it is a leftover, write {name}=self.training")  # fmt: skip
OF_BATCH = ("it has no running statistics, so it takes those of the batch at hand in eval mode too: what else is in a batch changes its "
            "results and the ranges behind it; calibrate with batches as large as in use")  # fmt: skip


def computes_as_in_training(gm: fx.GraphModule, node: fx.Node, table: Table) -> str | None:
    """A sentence on it; None for nearly all nodes."""
    row = table.of(node)
    if row is not None and row.draws(node.kwargs):
        return DRAWS
    if node.op == "call_module":
        module = gm.get_submodule(str(node.target))
        return OF_BATCH if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None else None
    given = _arguments(node) if node.op == "call_function" else {}
    if given.get("dropout_p", given.get("p")) == 0:
        return None
    name = next((name for name in NAMES if given.get(name) is True), None)
    if name is not None:
        return TRAINS.format(name=name)
    return DRAWS if "dropout_p" in given and given.get("training", True) is True else None


def _arguments(node: fx.Node) -> Mapping[str, object]:
    """By name, defaults too; nothing where no signature is known that takes them."""
    for signature in _signatures(node.target):
        try:
            bound = signature.bind(*node.args, **node.kwargs)
        except TypeError:
            continue
        bound.apply_defaults()
        if any(name in bound.arguments for name in (*NAMES, "dropout_p")):
            return bound.arguments
    return {}


def _signatures(target: object) -> Sequence[inspect.Signature]:
    return [inspect.signature(target)] if inspect.isfunction(target) else _of_torch(target)


@lru_cache(maxsize=1024)  # of no function of the user's, which may hold a model
def _of_torch(target: object) -> Sequence[inspect.Signature]:
    assert callable(target)
    found = list[inspect.Signature]()
    with suppress(NameError):  # `dict`: torch cannot say in Python which types it takes
        found.extend(get_signature_for_torch_op(target) or ())
    with suppress(TypeError, ValueError):  # a builtin that says nothing of itself
        found.append(inspect.signature(target))
    return found
