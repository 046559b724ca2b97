"""`zeros_like(x)` becomes `zeros(x.shape)`: it asks a computed value for its sizes alone, which a region knows before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import fx

from qcompiler.ir.types import SOURCE, VALUE, Value, source_of, value_of

_LIKES: Mapping[object, Callable[..., torch.Tensor]] = {
    torch.zeros_like: torch.zeros, torch.ones_like: torch.ones, torch.full_like: torch.full,
}  # fmt: skip
_SETTINGS = ("dtype", "fill_value")


def ask_for_sizes(gm: fx.GraphModule) -> None:
    """Takes the value out of each such call. Where memory is laid out otherwise than in order, the call stays."""
    for node in list(gm.graph.nodes):
        made = next((made for like, made in _LIKES.items() if node.target is like), None)  # a target may have no hash
        if made is None or node.kwargs.get("memory_format") not in (None, torch.contiguous_format, torch.preserve_format):
            continue
        x = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(x, fx.Node) or value_of(x).shape is None:
            continue
        with gm.graph.inserting_before(node):
            shape = gm.graph.create_node("call_function", getattr, (x, "shape"), name=f"{node.name}_shape")
        shape.meta[VALUE], shape.meta[SOURCE] = Value(None, None), source_of(node)
        settings = {key: value for key, value in node.kwargs.items() if key in _SETTINGS}
        node.target, node.args = made, (shape, *node.args[1:])
        node.kwargs = settings | {"dtype": value_of(node).dtype}
