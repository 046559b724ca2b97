"""Graphviz DOT text: one cluster a module, plain boxes (no record shapes), every label a quoted string."""

from __future__ import annotations

from collections.abc import Iterator

from qcompiler.viz.boxes import BOX, Drawing, Item
from qcompiler.viz.clusters import Cluster, clusters
from qcompiler.viz.colors import color_of, surface
from qcompiler.viz.labels import plain

EDGE, RIM = surface("edge"), surface("line-2")


def quoted(*lines: str) -> str:
    """A DOT string of some lines; nothing in them can end it or mean anything to Graphviz."""
    return '"' + "\\n".join(plain(line, 120).replace("\\", "\\\\").replace('"', '\\"') for line in lines) + '"'


def to_dot(drawing: Drawing) -> str:
    """The DOT file's text."""
    lines = [
        f"digraph {quoted(drawing.title)} {{",
        f"  graph [label={quoted(drawing.title)}, labelloc=t, fontname=Helvetica, rankdir=TB, nodesep=0.3, ranksep=0.4];",
        '  node [shape=box, style="rounded,filled", fillcolor=white, fontname=Helvetica, fontsize=10, penwidth=1.5];',
        f'  edge [color="{EDGE}", arrowsize=0.6];',
        *_cluster(drawing, clusters(drawing), "  "),
        *(f"  n{a} -> n{b};" for a, b in drawing.edges),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _cluster(drawing: Drawing, cluster: Cluster, indent: str) -> Iterator[str]:
    for i in cluster.items:
        yield f"{indent}{_node(i, drawing.items[i])}"
    for inner in cluster.inner:
        yield f"{indent}subgraph cluster_{inner.number} {{"
        yield f'{indent}  graph [label={quoted(inner.name)}, style="rounded", color="{RIM}"];'
        yield from _cluster(drawing, inner, indent + "  ")
        yield f"{indent}}}"


def _node(number: int, item: Item) -> str:
    more = ", peripheries=2" if item.kind == BOX else ""
    return f'n{number} [label={quoted(item.title, *item.lines)}, color="{color_of(item.kind)}"{more}];'
