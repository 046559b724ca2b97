"""Mermaid text: a flowchart for Markdown files. Labels are quoted, and all but plain characters are written as #code;."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qcompiler.viz.boxes import BOX, Drawing
from qcompiler.viz.clusters import Cluster, clusters
from qcompiler.viz.colors import KINDS
from qcompiler.viz.labels import plain

LIMIT = 200  # Mermaid itself gives up soon above: 500 edges, 50 000 characters
SPECIAL = re.compile(r"[^A-Za-z0-9 _.,:()+*/=×–·…-]")  # what could end a label or mean something in it


def quoted(*lines: str) -> str:
    """A label of some lines."""
    made = (SPECIAL.sub(lambda m: f"#{ord(m.group())};", plain(line, 80)) for line in lines)
    return '"' + "<br/>".join(made) + '"'


def to_mermaid(drawing: Drawing) -> str:
    """The Mermaid file's text."""
    used = [kind for kind in KINDS if any(item.kind == kind for item in drawing.items)]
    lines = [
        "flowchart TB",
        *_cluster(drawing, clusters(drawing), "  "),
        *(f"  n{a} --> n{b}" for a, b in drawing.edges),
        *(f"  classDef {kind}Kind stroke:{KINDS[kind][0]},stroke-width:2px" for kind in used),
    ]
    for kind in used:
        members = ",".join(f"n{i}" for i, item in enumerate(drawing.items) if item.kind == kind)
        lines.append(f"  class {members} {kind}Kind")
    return "\n".join(lines) + "\n"


def _cluster(drawing: Drawing, cluster: Cluster, indent: str) -> Iterator[str]:
    for i in cluster.items:
        item = drawing.items[i]
        opening, closing = ("[[", "]]") if item.kind == BOX else ("(", ")")
        yield f"{indent}n{i}{opening}{quoted(item.title, *item.lines)}{closing}"
    for inner in cluster.inner:
        yield f"{indent}subgraph m{inner.number}[{quoted(inner.name)}]"
        yield from _cluster(drawing, inner, indent + "  ")
        yield f"{indent}end"
