"""save: any graph to a file, in the format that its name says."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qcompiler.debug.document import Document
from qcompiler.debug.sources import document_of
from qcompiler.errors import ConfigError
from qcompiler.files.atomic import atomic_write
from qcompiler.inputs.door import door
from qcompiler.viz import dot, mermaid, model_explorer, svg
from qcompiler.viz.boxes import draw
from qcompiler.viz.page import render

SMALL, LARGE = 60, 300  # items of an SVG: where it chooses the depth, and where the user does
WHOLE = 1_000_000  # no limit


@dataclass(frozen=True)
class Format:
    """A kind of file. `render(document, depth)` gives (what follows the stem, text) of each file to write."""

    suffix: str
    about: str
    render: Callable[[Document, int | None], Iterable[tuple[str, str]]]


def _explorer(document: Document, depth: int | None) -> Iterable[tuple[str, str]]:
    yield ".me.json", model_explorer.dump(model_explorer.to_graph(document))
    for title, data in model_explorer.to_node_data(document).items():
        yield f".{re.sub(r'[^A-Za-z0-9]+', '-', title).strip('-') or 'data'}.me-data.json", model_explorer.dump(data)


def _drawing(document: Document, depth: int | None) -> Iterable[tuple[str, str]]:
    drawing = draw(document, depth=depth, limit=SMALL if depth is None else LARGE)
    yield ".svg", svg.to_svg(drawing, document.overlays)


FORMATS = (
    Format(".html", "interactive page, one offline file", lambda d, depth: [(".html", render(d))]),
    Format(".svg", "static drawing", _drawing),
    Format(".dot", "Graphviz text", lambda d, depth: [(".dot", dot.to_dot(draw(d, depth=depth, limit=WHOLE)))]),
    Format(".mmd", "Mermaid text", lambda d, depth: [(".mmd", mermaid.to_mermaid(draw(d, depth=depth, limit=mermaid.LIMIT)))]),
    Format(".me.json", "Model Explorer graph, and node data beside it", _explorer),
    Format(".json", "the graph document", lambda d, depth: [(".json", d.to_json())]),
)


def described(source: Any, numerics: Any, overlays: Mapping[str, Any] | None, title: str | None) -> Document:
    """The document of a source, with what the caller adds to it."""
    document = document_of(source)
    document = document.with_numerics(numerics) if numerics is not None else document
    for name, values in (overlays or {}).items():
        document = document.with_overlay(name, values)
    return replace(document, title=title) if title is not None else document


@door
def save(
    source: object,
    path: str | os.PathLike[str],
    *,
    numerics: object = None,
    overlays: Mapping[str, Mapping[str, float]] | None = None,
    title: str | None = None,
    depth: int | None = None,
) -> tuple[Path, ...]:
    """Writes the graph of `source` to `path`, atomically, and returns the files written (one, but for Model Explorer's node data).

    The name's ending is the format: .html, .svg, .dot, .mmd, .json or .me.json. `source`: what prepare_fx, convert_to_reference_fx
    or convert_fx returned, a Recorder, a Document, a dump directory or a list of them. `numerics`: measures by node name;
    `overlays`: {title: {node name: number}}. `depth`: show that many module levels (default: as many as there is room for).
    The same input gives the same bytes. ConfigError for another ending or source, ArtifactWriteError where it cannot write.
    """
    target = Path(path)
    found = next((f for f in FORMATS if target.name.endswith(f.suffix) and target.name != f.suffix), None)
    if found is None:
        endings = ", ".join(f.suffix for f in FORMATS)
        raise ConfigError(f"{target.name!r}: no format has this ending", code="viz-format", hint=f"one of {endings}")
    document, stem = described(source, numerics, overlays, title), target.name.removesuffix(found.suffix)
    written = []
    for suffix, text in found.render(document, depth):
        file = target.with_name(stem + suffix)
        atomic_write(file, [text.encode("utf-8")])
        written.append(file)
    return tuple(written)
