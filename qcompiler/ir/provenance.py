"""Every node knows where it comes from: what a pass leaves without a source gets one from its neighbours."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from qcompiler.ir.types import SOURCE, Source, source_of


def inherit_sources(graph: fx.Graph) -> None:
    """Fills in the sources that passes left out: from the first input, else (constants) from the first user."""
    for node in graph.nodes:
        _inherit(node, node.all_input_nodes)
    for node in reversed(graph.nodes):
        _inherit(node, list(node.users))


def _inherit(node: fx.Node, neighbours: list[fx.Node]) -> None:
    own = source_of(node)
    if own.file and own.module_type and own.origin:
        return
    other = next((s for s in map(source_of, neighbours) if s.file or s.module_type or s.origin), None)
    if other is not None:
        node.meta[SOURCE] = _filled(own, other)


def _filled(own: Source, other: Source) -> Source:
    if not own.module_type:
        own = replace(own, module_path=other.module_path, module_type=other.module_type)
    if not own.file:
        own = replace(own, file=other.file, line=other.line)
    return replace(own, origin=own.origin or other.origin)
