"""The graph as a networkx.DiGraph, for analyses that are graph problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import fx

if TYPE_CHECKING:
    import networkx as nx


def to_networkx(graph: fx.Graph) -> nx.DiGraph:
    """One vertex a node (the fx.Node itself, in topological order), one edge a use."""
    import networkx as nx  # a sixth of a second, which a process that only loads a module does not need

    view = nx.DiGraph()
    view.add_nodes_from(graph.nodes)
    view.add_edges_from((source, node) for node in graph.nodes for source in node.all_input_nodes)
    return view


def groups(graph: fx.Graph, same: Callable[[fx.Node, fx.Node], bool]) -> list[list[fx.Node]]:
    """Connected components over the edges where `same(source, user)` holds, each in topological order."""
    import networkx as nx

    view, order = to_networkx(graph), {node: i for i, node in enumerate(graph.nodes)}
    shared = nx.Graph()
    shared.add_nodes_from(view)
    shared.add_edges_from((a, b) for a, b in view.edges if same(a, b))
    return sorted((sorted(part, key=order.__getitem__) for part in nx.connected_components(shared)), key=lambda part: order[part[0]])
