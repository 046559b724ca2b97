"""Values that no input of a graph reaches: parameters, buffers, and what is computed from them alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qcompiler.ir.attributes import attribute
from qcompiler.ir.types import value_of
from qcompiler.ops.spec import Output
from qcompiler.ops.table import Table


def of_model_alone(graph: fx.Graph) -> dict[fx.Node, None]:
    """The float tensors whose values come from the model's tensors alone, in order. Sizes, which copies are expanded to, may be data's."""
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        dtype = value_of(node).dtype
        tensors = [n for n in node.all_input_nodes if value_of(n).shape is not None]
        computed = node.op.startswith("call_") and tensors and all(n in found for n in tensors)
        if dtype is not None and dtype.is_floating_point and (node.op == "get_attr" or computed):
            found[node] = None
    return found


def value_now(gm: fx.GraphModule, node: fx.Node, table: Table) -> Tensor | None:
    """What a node of `of_model_alone` holds now; where it is a copy whose size is the data's, what it copies. None for others of those."""
    try:
        with torch.no_grad():
            value: Tensor = _value(gm, node, table, {})
            return value
    except _Unknown:
        return None


class _Unknown(Exception):
    """A value that the data has a part in."""


def _value(gm: fx.GraphModule, node: fx.Node, table: Table, known: dict[fx.Node, Any]) -> Any:
    if node not in known:
        known[node] = _computed(gm, node, table, known)
    return known[node]


def _computed(gm: fx.GraphModule, node: fx.Node, table: Table, known: dict[fx.Node, Any]) -> object:
    if node.op == "get_attr":
        return attribute(gm, str(node.target))
    row = table.of(node)
    try:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _value(gm, n, table, known))  # type: ignore[misc]
    except _Unknown:
        if row is not None and row.output is Output.SAME and not row.adds_values(node.kwargs):
            return _value(gm, node.args[0], table, known)  # type: ignore[arg-type]
        raise
    if node.op == "call_function":
        return node.target(*args, **kwargs)  # type: ignore[operator]
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "call_module":
        return gm.get_submodule(str(node.target))(*args, **kwargs)
    raise _Unknown
