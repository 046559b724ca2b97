"""Values that share qparams."""

from __future__ import annotations

from torch import fx

from qcompiler.ir.types import quant_of


def members_of(graph: fx.Graph) -> dict[int, list[fx.Node]]:
    """The nodes of each group, in the order of the graph."""
    members: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        group = quant_of(node).group
        if group is not None:
            members.setdefault(group, []).append(node)
    return members
