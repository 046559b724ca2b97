"""A static SVG of a drawing: boxes in layers, no script, no fonts or images from elsewhere; follows dark and light."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from qcompiler.viz.boxes import BOX, Drawing, Item, Sums
from qcompiler.viz.colors import KINDS, color_at, color_of, surface
from qcompiler.viz.labels import count_text, plain
from qcompiler.viz.layout import Layout, Point, place

WIDTH, HEIGHT, ROW = 176, 58, 92  # of a box, and from one rank to the next
UNIT = WIDTH + 8  # x of the layout in pixels
MARGIN, TOP = 24, 88
TITLE, LINE = 22, 28  # characters that fit in a box
FONT = 'ui-sans-serif,system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif'


def _style() -> str:
    light, dark = _paints(dark=False), _paints(dark=True)
    return f"""
svg{{font-family:{FONT}}}.edge{{fill:none;stroke-width:1.3}}.name{{font-size:12px;font-weight:600}}.line{{font-size:10.5px}}
.head{{font-size:17px;font-weight:600}}.sub{{font-size:12px}}
{light}
@media (prefers-color-scheme:dark){{{dark}}}
"""


def _paints(dark: bool) -> str:
    """The colours of the parts of a picture."""
    paper, card, group, line, edge, text, muted = (
        surface(name, dark) for name in ("panel", "raised", "level-2", "line-2", "edge", "text", "muted")
    )
    return (
        f"svg{{background:{paper}}}.card{{fill:{card};stroke:{line}}}.group{{fill:{group};stroke:{edge}}}"
        f".edge{{stroke:{edge}}}.tip{{fill:{edge}}}text{{fill:{text}}}.line,.sub{{fill:{muted}}}"
    )


@dataclass(frozen=True)
class Overlay:
    """One number a node, as tints from the smallest to the largest of the drawing."""

    title: str
    values: Mapping[str, float]
    low: float
    high: float

    @staticmethod
    def of(items: Sequence[Item], overlays: Mapping[str, Mapping[str, float]]) -> Overlay | None:
        """The first overlay, if there is one that says something of these items."""
        title, values = next(iter(overlays.items()), ("", {}))
        shown = [value for item in items if (value := _largest(item, values)) is not None]
        return Overlay(plain(title, 40), values, min(shown), max(shown)) if shown else None

    def of_item(self, item: Item) -> float | None:
        return _largest(item, self.values)

    def tint(self, value: float, x: float, y: float) -> str:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 1.0
        return f'<rect x="{x:.1f}" y="{y:.1f}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{color_at(share)}" fill-opacity="0.35"/>'

    def legend(self) -> str:
        steps = [f'<rect x="{MARGIN + 9 * i}" y="76" width="9" height="9" fill="{color_at(i / 9)}"/>' for i in range(10)]
        text = escape(f"{self.title}: {_number(self.low)} to {_number(self.high)}")
        return "".join(steps) + f'<text class="line" x="{MARGIN + 98}" y="84">{text}</text>'


def _largest(item: Item, values: Mapping[str, float]) -> float | None:
    return max((values[name] for name in item.names if values.get(name) is not None), default=None)


def to_svg(drawing: Drawing, values: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """The SVG file's text. `values`: overlays; a box stands for the largest value of its nodes. The first one tints the boxes."""
    overlay = Overlay.of(drawing.items, values or {})
    layout = place(len(drawing.items), drawing.edges)
    legend = _legend(drawing.items) + (overlay.legend() if overlay else "")
    width = max(layout.width * UNIT + 2 * MARGIN, 420 + 2 * MARGIN)
    shift = (width - layout.width * UNIT) / 2
    height = TOP + layout.ranks * ROW + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
        f' role="img" aria-label={quoteattr(plain(drawing.title, 200))}>',
        f"<title>{escape(plain(drawing.title, 200))}</title><style>{_style()}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="tip" d="M0 0.8 8 4 0 7.2z"/></marker></defs>',
        f'<text class="head" x="{MARGIN}" y="32">{escape(plain(drawing.title, 80))}</text>',
        f'<text class="sub" x="{MARGIN}" y="50">{escape(summary(drawing.total))}</text>',
        legend,
        *(_edge(layout, edge, shift) for edge in drawing.edges),
        *(_box(item, layout.boxes[i], shift, overlay) for i, item in enumerate(drawing.items)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def summary(sums: Sums) -> str:
    """One line on a whole graph."""
    parts = [f"{sums.ops} ops"]
    parts += [f"{count_text(sums.params)} parameters"] if sums.params else []
    parts += [f"{count_text(sums.macs)} MACs {sums.unit}"] if sums.macs else []
    parts += [sums.verdict] if sums.verdict else []
    return " · ".join(parts + ([f"worst SQNR {sums.sqnr:.1f} dB"] if sums.sqnr is not None else []))


def _legend(items: Sequence[Item]) -> str:
    x, parts = MARGIN, []
    for kind, (color, name) in KINDS.items():
        if any(item.kind == kind for item in items):
            parts.append(f'<rect x="{x}" y="58" width="11" height="11" rx="2" fill="{color}"/>')
            parts.append(f'<text class="line" x="{x + 16}" y="67">{name}</text>')
            x += 30 + 6 * len(name)
    return "".join(parts)


def _pixels(point: Point, shift: float) -> tuple[float, float]:
    """Middle of a box's upper side."""
    return point[0] * UNIT + shift, TOP + point[1] * ROW + 10


def _edge(layout: Layout, edge: tuple[int, int], shift: float) -> str:
    (x, y), (to_x, to_y) = (_pixels(layout.boxes[i], shift) for i in edge)
    y += HEIGHT
    path = [f"M{x:.1f} {y:.1f}"]
    for bend in layout.bends[edge]:
        bend_x, bend_y = _pixels(bend, shift)
        path.append(_curve(x, y, bend_x, bend_y) + f"V{bend_y + HEIGHT:.1f}")
        x, y = bend_x, bend_y + HEIGHT
    path.append(_curve(x, y, to_x, to_y))
    return f'<path class="edge" marker-end="url(#tip)" d="{"".join(path)}"/>'


def _curve(x: float, y: float, to_x: float, to_y: float) -> str:
    half = (y + to_y) / 2
    return f"C{x:.1f} {half:.1f} {to_x:.1f} {half:.1f} {to_x:.1f} {to_y:.1f}"


def _box(item: Item, point: Point, shift: float, overlay: Overlay | None) -> str:
    middle, y = _pixels(point, shift)
    x = middle - WIDTH / 2
    value = overlay.of_item(item) if overlay else None
    lines = [*item.lines[:2], *([_number(value)] if value is not None else item.lines[2:])]
    texts = [_line(x + 14, y + 32 + 13 * i, t, LINE) for i, t in enumerate(lines[:2])]
    texts += [_line(x + WIDTH - 8, y + 18, t, 12, ' text-anchor="end"') for t in lines[2:]]
    hover = (item.title, *lines, ", ".join(item.names[:8]) + (" …" if len(item.names) > 8 else ""))
    return (
        f"<g><title>{escape(chr(10).join(plain(t, 300) for t in hover))}</title>"
        f'<rect class="{"group" if item.kind == BOX else "card"}" x="{x:.1f}" y="{y:.1f}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f"{overlay.tint(value, x, y) if overlay and value is not None else ''}"
        f"{_stripe(item, x, y)}"
        f'<text class="name" x="{x + 14:.1f}" y="{y + 18:.1f}">{escape(_name(item, TITLE if len(lines) < 3 else TITLE - 8))}</text>'
        f"{''.join(texts)}</g>"
    )


def _name(item: Item, limit: int) -> str:
    """The title; of a long module path its end."""
    title = plain(item.title)
    return f"…{title[-limit + 1 :]}" if item.kind == BOX and len(title) > limit else plain(title, limit)


def _number(value: float) -> str:
    return count_text(value) if value >= 1000 else f"{value:.4g}"


def _line(x: float, y: float, text: str, limit: int, more: str = "") -> str:
    return f'<text class="line"{more} x="{x:.1f}" y="{y:.1f}">{escape(plain(text, limit))}</text>'


def _stripe(item: Item, x: float, y: float) -> str:
    """The kind's colour at the left; of a box, int8 from the bottom up and float above it, by their shares."""
    height, share = HEIGHT - 12, item.sums.int8_share
    if item.kind != BOX or share is None:
        return f'<rect x="{x + 5:.1f}" y="{y + 6:.1f}" width="4" height="{height}" rx="2" fill="{color_of(item.kind)}"/>'
    split = height * (1 - share)
    return (
        f'<rect x="{x + 5:.1f}" y="{y + 6:.1f}" width="4" height="{split:.1f}" fill="{color_of("float")}"/>'
        f'<rect x="{x + 5:.1f}" y="{y + 6 + split:.1f}" width="4" height="{height - split:.1f}" fill="{color_of("int8")}"/>'
    )
