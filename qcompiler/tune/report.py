"""report.html of a search: its table, the curve of accuracy against time spent and against speed, and a link to the coloured graph."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Protocol

from torch import Tensor, fx, nn

from qcompiler.config.corrections import Corrections
from qcompiler.debug.fitted_table import FittedTable
from qcompiler.files.atomic import atomic_write
from qcompiler.ir.attributes import attribute
from qcompiler.ops.reference import quantize
from qcompiler.tune.search import graph_of
from qcompiler.tune.search_log import Step
from qcompiler.tune.table import Row
from qcompiler.viz.colors import style_of_system
from qcompiler.viz.files import save

WIDTH, HEIGHT, MARGIN = 640, 280, 46
STYLE = (
    style_of_system()
    + """
body { margin: 0 auto; max-width: 64rem; padding: 2rem 1.25rem; background: var(--bg); color: var(--text); font: 16px/1.5 system-ui; }
table { border-collapse: collapse; margin: 1.5rem 0; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .35rem .5rem; border-bottom: 1px solid var(--line); text-align: right; } th { color: var(--muted); font-weight: 500; }
th:nth-child(2), td:nth-child(2), th:last-child, td:last-child { text-align: left; }
td { white-space: nowrap; } td:last-child { min-width: 10rem; white-space: normal; }
.wide { overflow-x: auto; } a { color: var(--accent); } tr.chosen { color: var(--accent); font-weight: 600; }
svg { width: 100%; min-width: 30rem; max-width: 45rem; }
svg text { fill: var(--muted); font: 12px system-ui; } svg line { stroke: var(--line); }
svg polyline { fill: none; stroke: var(--accent); stroke-width: 2; } svg circle { fill: var(--accent); } p { color: var(--muted); }
"""
)


class Result(Protocol):
    """What a page shows: the result of a search."""

    @property
    def table(self) -> tuple[Row, ...]: ...

    @property
    def steps(self) -> tuple[Step, ...]: ...

    @property
    def corrections(self) -> Corrections: ...

    @property
    def prepared(self) -> nn.Module: ...

    def notes(self) -> list[str]: ...

    def rich(self) -> FittedTable: ...


def write_report(tuned: Result, folder: Path) -> Path:
    """report.html and graph.html in the folder, which is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    save(graph_of(tuned.prepared, tuned.corrections), folder / "graph.html", overlays=_overlays(tuned), title="what tuning changed")
    page = folder / "report.html"
    atomic_write(page, [rendered(tuned).encode("utf-8")])
    return page


def rendered(tuned: Result) -> str:
    """The page; the same result gives the same text."""
    columns = [column for column in tuned.rich().columns if any(column.cells)]
    head = "".join(f"<th>{escape(column.header)}</th>" for column in columns)
    body = "".join(_line([column.cells[i] for column in columns], row.chosen) for i, row in enumerate(tuned.table))
    notes = "".join(f"<p>{escape(note)}</p>" for note in tuned.notes())
    title = escape(tuned.rich().title)
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f'<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>'
            f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{notes}'
            f'<div class="wide">{curve(tuned.table)}</div>'
            '<p><a href="graph.html">The graph</a>: colour it by what each step changed.</p></html>')  # fmt: skip


def _line(cells: Sequence[str], is_chosen: bool) -> str:
    kind = ' class="chosen"' if is_chosen else ""
    return f"<tr{kind}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def curve(rows: Sequence[Row]) -> str:
    """The best dB by then, against the seconds of the steps. What was not taken is a point whose name shows under the pointer."""
    points, spent, best = [], 0.0, None
    for row in rows:
        spent += row.seconds
        if row.score is not None and row.name != "float":
            best = row.score.sqnr if best is None or row.verdict == "taken" else best
            points.append((spent, row.score.sqnr, best, row))
    if not points:
        return ""
    most, values = max(p[0] for p in points) or 1.0, [value for p in points for value in (p[1], p[2])]
    low, high = min(values) - 0.5, max(values) + 0.5

    def at(x: float, y: float) -> tuple[float, float]:
        return MARGIN + x / most * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - (y - low) / (high - low) * (HEIGHT - 2 * MARGIN)

    line = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, _, y, _ in points)
    marks = "".join(_mark(*at(x, y), f"{row.name} {y:.1f} dB", row is points[0][3] or row.verdict == "taken") for x, y, _, row in points)
    ends = "".join(f'<text x="4" y="{at(0, y)[1]:.1f}">{y:.1f} dB</text>' for y in (low, high))
    axis = f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{HEIGHT - MARGIN}" y2="{HEIGHT - MARGIN}"/>'
    label = f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 12}" text-anchor="end">{most:.1f} s</text>'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{axis}{ends}{label}<polyline points="{line}"/>{marks}</svg>'


def _mark(x: float, y: float, text: str, written: bool) -> str:
    anchor = "end" if x > WIDTH / 2 else "start"
    label = f'<text x="{x:.1f}" y="{y - 9:.1f}" text-anchor="{anchor}">{escape(text)}</text>' if written else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(text)}</title></circle>{label}'


def _overlays(tuned: Result) -> dict[str, dict[str, float]]:
    """By step, the share of codes that differ from the step before, by the name of the node that multiplies by them, and 1 for what stays
    float and for a rounding on another range."""
    before, found = graph_of(tuned.prepared, tuned.steps[0].corrections), {}
    for step in tuned.steps[1:]:
        if step.accepted:
            after = graph_of(tuned.prepared, step.corrections)
            found[f"changed by {step.name}"] = _changed(before, after)
            before = after
    return {title: values for title, values in found.items() if values}


def _changed(before: fx.GraphModule, after: fx.GraphModule) -> dict[str, float]:
    held, names = _read(before), {node.name for node in before.graph.nodes}
    found = {name: _share(held[name], tensors) for name, tensors in _read(after).items() if name in held}
    found |= {node.name: 1.0 for node in after.graph.nodes if node.op == "call_function" and node.name not in names}
    ranges = _ranges(before)
    found |= {name: 1.0 for name, given in _ranges(after).items() if given != ranges.get(name, given)}
    return {name: share for name, share in found.items() if share > 0}


def _ranges(gm: fx.GraphModule) -> dict[str, tuple[object, ...]]:
    """By node that rounds a value, its steps."""
    return {node.name: node.args[1:] for node in gm.graph.nodes if node.target is quantize}


def _read(gm: fx.GraphModule) -> dict[str, list[Tensor]]:
    """By node that is no constant, the tensors that it computes with, seen through their dequantization."""
    found: dict[str, list[Tensor]] = {}
    held: dict[fx.Node, list[Tensor]] = {}
    for node in gm.graph.nodes:
        given = [tensor for source in node.all_input_nodes for tensor in held.get(source, ())]
        if node.op == "get_attr":
            held[node] = [attribute(gm, str(node.target))]
        elif node.op == "call_function" and given and all(source in held for source in node.all_input_nodes):
            held[node] = given
        elif given:
            found[node.name] = given
    return found


def _share(before: list[Tensor], after: list[Tensor]) -> float:
    """The largest share of numbers in which a tensor differs from the one in its place."""
    if len(before) != len(after):
        return 1.0
    return max((a.double() != b.double()).double().mean().item() if a.shape == b.shape else 1.0 for a, b in zip(before, after))
