"""Regions of values whose channels can be scaled: between ops with weights, through ops for which f(s x) = s f(x).

A region begins at convolutions, linears and layer norms, whose weights take 1/s, and ends at convolutions and linears, whose weights take
s. So nothing is computed that was not before, and no float result changes. What else reads a value of a region, or makes one, rules it out:
a clamp with an upper end, a sigmoid, an input or a result of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, fx

from qcompiler.ir.attributes import attribute
from qcompiler.ir.types import value_of
from qcompiler.ops.arguments import activations, asks_size
from qcompiler.ops.spec import CONVOLUTIONS, Family, Op
from qcompiler.ops.table import Table
from qcompiler.stages.arguments import bounds_of

WEIGHTED = (*CONVOLUTIONS, Family.LINEAR)


@dataclass
class Region:
    """`axis`: that of the channels, counted from the end."""

    axis: int
    channels: int
    makers: list[fx.Node] = field(default_factory=list)
    readers: list[fx.Node] = field(default_factory=list)
    values: list[fx.Node] = field(default_factory=list)


def regions(gm: fx.GraphModule, table: Table) -> Iterator[Region]:
    """Those of a float graph, in order."""
    import networkx as nx

    graph = nx.Graph()
    for node in gm.graph.nodes:
        row = table.of(node)
        if row is not None and _passes(node, row, table):
            graph.add_edges_from((node, given) for given in activations(table, node))
        graph.add_node(node)
    for values in nx.connected_components(graph):
        region = _region(gm, sorted(values), table)  # nodes compare by their place in the graph
        if region is not None:
            yield region


def _passes(node: fx.Node, row: Op, table: Table) -> bool:
    """Whether the op scales with its operands, channel by channel, and takes nothing else."""
    given = list(activations(table, node))
    alike = {value_of(x).shape for x in given} if row.family is Family.ARITHMETIC else {None}
    whole = len(given) == sum(1 for param in row.params if param.name != "weight")
    return row.homogeneous(node.kwargs) and whole and len(alike) == 1 and _opens(node)


def _opens(node: fx.Node) -> bool:
    """Whether what bounds cut is below zero alone."""
    return bounds_of(node.kwargs) in ((None, None), (0.0, None))


def _region(gm: fx.GraphModule, values: list[fx.Node], table: Table) -> Region | None:
    made = [node for node in values if _makes(gm, node, table)]
    inner = [node for node in values if node not in made]
    users = [user for node in values for user in node.users if user not in values and not asks_size(user)]
    readers = [user for user in dict.fromkeys(users) if user not in made or user in users]
    if not made or not readers or not all(_reads(gm, user, values, table) for user in readers):
        return None
    if any((row := table.of(node)) is None or not _passes(node, row, table) for node in inner):
        return None
    axes = {_axis(node, table) for node in made} | {_axis(user, table) for user in readers}
    shape, axis = value_of(made[0]).shape or (), next(iter(axes))
    if len(axes) != 1 or len(shape) < axis or not all(_keeps(node, axis, shape[-axis], table) for node in values):
        return None
    return Region(axis, shape[-axis], made, readers, values)


def _makes(gm: fx.GraphModule, node: fx.Node, table: Table) -> bool:
    row = table.of(node)
    if row is None or not _opens(node):
        return False
    if row.name == "layer_norm":
        return len(node.args) > 1 and all(is_own(gm, arg) for arg in node.args[1:3])
    biases = node.args[2:3]
    return row.family in WEIGHTED and is_own(gm, node.args[1]) and all(arg is None or is_own(gm, arg) for arg in biases)


def _reads(gm: fx.GraphModule, node: fx.Node, values: list[fx.Node], table: Table) -> bool:
    row = table.of(node)
    return row is not None and row.family in WEIGHTED and is_own(gm, node.args[1]) and not any(arg in values for arg in node.args[1:])


def is_own(gm: fx.GraphModule, arg: object) -> bool:
    """Whether an argument is a parameter that nothing else reads."""
    if not isinstance(arg, fx.Node) or arg.op != "get_attr" or len(arg.users) != 1:
        return False
    held = attribute(gm, str(arg.target))
    others = (n for n in gm.graph.nodes if n.op == "get_attr" and n is not arg)
    return isinstance(held, Tensor) and not any(attribute(gm, str(n.target)) is held for n in others)


def _axis(node: fx.Node, table: Table) -> int:
    row = table.of(node)
    assert row is not None
    return 1 if row.dims is None else row.dims + 1


def _keeps(node: fx.Node, axis: int, channels: int, table: Table) -> bool:
    """Whether a value has its channels there, as its op understands them."""
    shape, row = value_of(node).shape or (), table.of(node)
    if len(shape) < axis or shape[-axis] != channels or row is None:
        return False
    if row.family is Family.POOL and row.dims != axis - 1:
        return False
    return row.name != "prelu" or len(shape) == axis + 1 or value_of(node.args[1]).shape == (1,)  # type: ignore[arg-type]
