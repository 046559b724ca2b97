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
    """What a node of `of_model_alone` holds now; where it is a copy whose size is the data's, what it copies. None for others of those,
    and for what is computed from such a copy."""
    try:
        with torch.no_grad():
            value: Tensor = _Values(gm, table).of(node)
            return value
    except _Unknown:
        return None


class _Unknown(Exception):
    """A value that the data has a part in."""


class _Values:
    """`copied`: the nodes whose values stand for copies of them, of sizes that the data gives."""

    def __init__(self, gm: fx.GraphModule, table: Table) -> None:
        self.gm, self.table = gm, table
        self.known: dict[fx.Node, Any] = {}
        self.copied: set[fx.Node] = set()

    def of(self, node: fx.Node) -> Any:
        if node not in self.known:
            self.known[node] = self._computed(node)
        return self.known[node]

    def _computed(self, node: fx.Node) -> object:
        if node.op == "get_attr":
            return attribute(self.gm, str(node.target))
        row = self.table.of(node)
        copies = row is not None and row.output is Output.SAME and not row.adds_values(node.kwargs)
        try:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.of)  # type: ignore[misc]
        except _Unknown:
            return self._source(node, copies)
        if not self.copied.isdisjoint(node.all_input_nodes):
            if node.op != "call_module":  # what a module watches or rounds, it does element by element
                return self._source(node, copies)
            self.copied.add(node)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_module":
            return self.gm.get_submodule(str(node.target))(*args, **kwargs)
        raise _Unknown

    def _source(self, node: fx.Node, copies: bool) -> object:
        """What a copy copies. Raises _Unknown for any other op."""
        if not copies:
            raise _Unknown
        self.copied.add(node)
        return self.of(node.args[0])  # type: ignore[arg-type]
