"""Which numbers and sizes of a graph depend on the values of tensors, so that no trace may hold them."""

from __future__ import annotations

from collections.abc import Set

import torch
from torch import fx

from qcompiler.ir.types import value_of
from qcompiler.trace.fixed_sizes import BROADCASTS, FixedSizes, name_of

# Calls that make a number of a tensor's values, which the graph can have as a value.
NUMBERS = frozenset(("item", "int", "float", "bool", "not_", "equal", "allclose", "is_nonzero", "floor", "ceil", "trunc", "round"))
_DATA_SIZED = frozenset(("nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "nms", "batched_nms", "bincount"))
# The result has the shape of the first tensor, or of all tensors spread over each other, whatever the numbers among the arguments are.
_FIRST_SHAPE = frozenset((
    "index_add", "index_copy", "index_fill", "index_put", "index_reduce", "scatter", "scatter_add", "scatter_reduce", "masked_fill",
    "masked_scatter", "clamp", "pow", "fill", "full_like", "setitem",
))  # fmt: skip
_SPREAD = BROADCASTS | {"eq", "ne", "lt", "le", "gt", "ge", "where", "floordiv", "mod", "and_", "or_", "choose", "maximum", "minimum"}


def _needs_data(name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
    """Whether the shape of a call's result depends on the values of its tensors."""
    if name == "where":
        return len(args) == 1
    if name == "bincount":
        return len(args) < 3 and "minlength" not in kwargs  # with it, the number is held by a guard where it is used
    if name == "one_hot":
        return len(args) < 2 and "num_classes" not in kwargs
    if name == "repeat_interleave":
        return any(isinstance(a, torch.Tensor) for a in (*args[1:], kwargs.get("repeats")))
    if name != "getitem" or len(args) < 2:
        return name in _DATA_SIZED
    index = args[1] if type(args[1]) is tuple else (args[1],)
    return any(isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in index)


def depends_on_data(
    node: fx.Node, args: tuple[object, ...], kwargs: dict[str, object], example: object, known: Set[fx.Node], fixed: FixedSizes
) -> bool:
    """Whether a new node is a number that depends on data, or has sizes that do. `known`: the nodes before it that do."""
    name, inputs = name_of(node.target), list(node.all_input_nodes)
    if _needs_data(name, args, kwargs):
        return True
    if not isinstance(example, torch.Tensor):
        if name == "size" and len(node.args) == 2:
            return node.args[0] in known and not fixed.holds(*node.args)
        if name in NUMBERS and any(isinstance(a, torch.Tensor) for a in args):
            return True
    elif name in _FIRST_SHAPE:
        inputs = inputs[:1]
    elif name in _SPREAD:
        inputs = [a for a in inputs if value_of(a).shape is not None]
    return any(n in known for n in inputs)
