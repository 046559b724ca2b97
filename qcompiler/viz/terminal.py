"""print: the modules of a graph as a tree with their sums, and the worst nodes, as wide as the terminal is."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import IO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qcompiler.debug.document import Document, Node
from qcompiler.debug.op_steps import is_op
from qcompiler.debug.sources import document_of
from qcompiler.errors import ConfigError
from qcompiler.inputs.door import door
from qcompiler.viz.boxes import Sums, parts_of, sums_of
from qcompiler.viz.labels import count_text, plain, shape_text, short_op
from qcompiler.viz.svg import summary

NARROW, WIDE = 72, 100  # columns of the terminal: below the first only sums, from the second on all
COLORS = {"auto": None, "always": True, "never": False}


@door
def print(
    model: object, depth: int = 2, color: str = "auto", *, numerics: object = None, worst: int = 5,
    file: IO[str] | None = None, width: int | None = None,
) -> None:  # fmt: skip
    """Prints `model` (anything that `save` takes) as a tree of modules, `depth` levels deep, with sums for each.

    `color`: auto (follows the terminal and NO_COLOR), always or never. With `numerics` the `worst` nodes by SQNR follow.
    """
    if color not in COLORS:
        raise ConfigError(f"color={color!r:.40}", code="color", hint=f"one of {', '.join(COLORS)}")
    document = document_of(model)
    document = document.with_numerics(numerics) if numerics is not None else document
    console = Console(file=file, width=width, force_terminal=COLORS[color], no_color=True if color == "never" else None, highlight=False)
    for line in (Text(plain(document.title), "bold"), Text(summary(sums_of(document.nodes_at(-1), document)), "dim")):
        console.print(line, overflow="ellipsis", no_wrap=True)
    console.print(tree(document, max(depth, 1), console.width))
    if document.numerics:
        console.print(worst_table(document, worst, console.width))


def tree(document: Document, depth: int, width: int) -> Table:
    """The table of modules; deeper ones are summed up in the last level shown."""
    nodes = document.nodes_at(-1)
    table = Table(box=None, padding=(0, 1), show_edge=False, header_style="bold")
    table.add_column("module", no_wrap=True, overflow="ellipsis", ratio=None)
    for name in _columns(document, width):
        table.add_column(name, justify="left" if name == "class" else "right", no_wrap=True, overflow="ellipsis")
    _rows(table, (), nodes, depth, document, width)
    return table


def _columns(document: Document, width: int) -> list[str]:
    columns = ["ops", "int8"] if width < NARROW else ["ops", "params", "MACs", "int8"]
    return (["class"] if width >= WIDE else []) + columns + (["SQNR"] if document.numerics else [])


def _rows(table: Table, path: tuple[str, ...], nodes: Sequence[Node], depth: int, document: Document, width: int) -> None:
    """The children of a module in order of first use: modules, and the ops that it does itself."""
    groups: dict[str | None, list[Node]] = {}
    for node in sorted(nodes, key=lambda n: not is_op(n)):  # stable: the first op gives a group its place
        parts = parts_of(node)
        groups.setdefault(parts[len(path)] if len(parts) > len(path) else None, []).append(node)
    for name, members in groups.items():
        sums = sums_of(members, document)
        if name is None and not sums.ops:
            continue
        label = Text("  " * len(path)) + (Text(plain(name, 60)) if name is not None else Text(_own(members), "dim"))
        table.add_row(label, *_cells(members, (*path, name or ""), sums, document, width))
        if name is not None and len(path) + 1 < depth:
            _below(table, (*path, name), members, depth, document, width)


def _below(table: Table, path: tuple[str, ...], members: Sequence[Node], depth: int, document: Document, width: int) -> None:
    if any(len(parts_of(n)) > len(path) for n in members):
        _rows(table, path, members, depth, document, width)


def _own(nodes: Sequence[Node]) -> str:
    """The ops of a module itself, by name."""
    names = list(dict.fromkeys(plain(short_op(n["op"]), 20) for n in nodes if is_op(n)))
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def _cells(members: Sequence[Node], path: tuple[str, ...], sums: Sums, document: Document, width: int) -> list[Text]:
    classes = [n.get("cls", "") for n in members if parts_of(n) == path]
    share = sums.int8_share
    style = "" if share is None else "green" if share > 0.99 else "yellow"
    cells = {
        "class": Text(plain(classes[0], 24) if classes and len(set(classes)) == 1 else "", "dim"),
        "ops": Text(str(sums.ops)),
        "params": Text(count_text(sums.params) if sums.params else ""),
        "MACs": Text(count_text(sums.macs) if sums.macs else ""),
        "int8": Text("" if share is None else f"{share:.0%}", style),
        "SQNR": Text("" if sums.sqnr is None else f"{sums.sqnr:.1f} dB"),
    }
    return [cells[name] for name in _columns(document, width)]


def worst_table(document: Document, count: int, width: int) -> Table:
    """The nodes with the lowest SQNR, worst first."""
    nodes = {n["name"]: n for i in range(len(document.stages)) for n in document.stages[i]["put"]}
    measured = [(entry["sqnr"], name) for name, entry in document.numerics.items() if (entry or {}).get("sqnr") is not None]
    title = f"lowest SQNR, {builtins.min(count, len(measured))} of {len(measured)}"
    table = Table(box=None, padding=(0, 1), title=title, title_justify="left")
    limits = _worst_columns(width)
    for name in limits:
        table.add_column(name, justify="right" if name == "SQNR" else "left", no_wrap=True)
    for sqnr, name in sorted(measured)[:count]:
        node = nodes[name]
        cells = {"SQNR": f"{sqnr:.1f} dB", "node": name, "op": short_op(node["op"])}
        cells |= {"module": node.get("path", ""), "shape": shape_text(node)}
        table.add_row(*(Text(plain(cells[column], limit)) for column, limit in limits.items()))
    return table


def _worst_columns(width: int) -> dict[str, int]:
    """Columns and their widths, which with two spaces between them fill the line; without module and shape on a narrow one."""
    if width < NARROW:
        return {"SQNR": 8, "node": max(width - 30, 6), "op": 16}
    rest = width - 8 - 16 - 22 - 10
    return {"SQNR": 8, "node": rest * 3 // 5, "op": 16, "module": rest * 2 // 5, "shape": 22}
