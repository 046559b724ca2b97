"""Figure: a graph that shows itself in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from qcompiler.debug.document import Document
from qcompiler.inputs.door import door
from qcompiler.viz.colors import surface
from qcompiler.viz.files import described
from qcompiler.viz.page import render

RIM = surface("line-2")


class Figure:
    """The page of a document in a sandboxed frame: its script sees neither the notebook nor the network."""

    def __init__(self, document: Document, height: int = 600) -> None:
        self.document, self.height = document, height

    def _repr_html_(self) -> str:
        source = escape(render(self.document), quote=True)
        return (
            f'<iframe sandbox="allow-scripts allow-downloads" srcdoc="{source}" width="100%" height="{int(self.height)}" '
            f'style="border:1px solid {RIM};border-radius:6px" title="graph"></iframe>'
        )

    def __repr__(self) -> str:
        return f"<Figure {self.document.title!r:.80}, {len(self.document.nodes_at(-1))} nodes; show it in a notebook or viz.save it>"


@door
def show(model: object, *, numerics: object = None, overlays: Mapping[str, Mapping[str, float]] | None = None,
         title: str | None = None, height: int = 600) -> Figure:  # fmt: skip
    """The graph of `model` (anything that `save` takes) for a notebook cell."""
    return Figure(described(model, numerics, overlays, title), height)
