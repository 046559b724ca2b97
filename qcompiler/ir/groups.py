"""Values that share qparams."""

from __future__ import annotations

from torch import fx

from qcompiler.ir.types import QUANT, quant_of


def members_of(graph: fx.Graph) -> dict[int, list[fx.Node]]:
    """The nodes of each group, in the order of the graph."""
    members: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        group = quant_of(node).group
        if group is not None:
            members.setdefault(group, []).append(node)
    return members


def join(members: dict[int, list[fx.Node]], node: fx.Node, source: fx.Node) -> None:
    """The whole group of `node` joins that of `source`, with its qparams."""
    own, shared = quant_of(node).group, quant_of(source)
    assert own is not None and shared.group is not None
    for member in members.pop(own):
        member.meta[QUANT] = quant_of(member).with_(qparams=shared.qparams, group=shared.group)
        members[shared.group].append(member)
