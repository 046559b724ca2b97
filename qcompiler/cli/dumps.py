"""`qcompiler dumps`: what pass dumps hold, as tables, diffs and pages."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qcompiler.cli.commands import app, clean_errors, console
from qcompiler.debug.printer import coloured, unified_diff
from qcompiler.debug.read_dumps import DumpedCompile, compiles, latest, with_pass

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that QCOMPILER_DEBUG or debug= named, or one compile in it.")]

dumps = typer.Typer(
    name="dumps",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Look at pass dumps: what each pass of a compilation did, and how long it took.\n\n"
    "`QCOMPILER_DEBUG=folder python my_script.py`, then `qcompiler dumps show folder`.",
)
app.add_typer(dumps)


@dumps.command()
@clean_errors
def show(directory: Directory) -> None:
    """List the compiles of DIR with their passes, changes and times."""
    for compiled in compiles(directory):
        console.print(_passes(compiled))
        console.print(f"[dim]{escape(str(compiled.path / 'index.md'))}[/]", highlight=False, soft_wrap=True)
        if compiled.failed:
            console.print(f"[bold red]failed[/]: python {escape(str(compiled.path / 'repro.py'))}", highlight=False, soft_wrap=True)


def _passes(compiled: DumpedCompile) -> Table:
    total = sum(p["ms"] for p in compiled.passes)
    heading = f"{compiled.path.name}  {total:.0f} ms"
    table = Table(title=escape(heading), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("#", "pass", "changed", "nodes", "rewrites", "ms", "self", "%"):
        table.add_column(header, justify="left" if header in ("pass", "changed") else "right", no_wrap=True)
    for p in compiled.passes:
        table.add_row(str(p["seq"]), escape(p["name"]), _changed(p), _nodes(p), str(p["matches"] or ""), f"{p['ms']:.1f}",
                      f"{p['self_ms']:.1f}", f"{100 * p['ms'] / (total or 1):.1f}")  # fmt: skip
    return table


def _changed(record: dict[str, Any]) -> Text:
    if record["skipped"]:
        return Text("not run", "yellow")
    return Text("yes", "green") if record["changed"] else Text("no", "dim")


def _nodes(record: dict[str, Any]) -> str:
    before, after = record["nodes_before"], record["nodes_after"]
    return str(after) if before == after else f"{before} → {after}"


@dumps.command()
@clean_errors
def diff(
    directory: Directory,
    first: Annotated[str, typer.Argument(metavar="A", help="A pass by name or number, `input` or `final`; `0002/lower` says where.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The graph to compare it with.")],
    context: Annotated[int, typer.Option(help="Equal lines to show around each change.", min=0)] = 2,
) -> None:
    """Show how the graph behind pass B differs from the one behind pass A.

    `qcompiler dumps diff folder input fuse`
    """
    found = compiles(directory)
    sides = [(with_pass(found, name), name.rpartition("/")[2]) for name in (first, second)]
    texts = [compiled.graph(name) for compiled, name in sides]
    names = [f"{compiled.path.name}/{compiled.stem(name)}" for compiled, name in sides]
    text = unified_diff(texts[0], texts[1], (names[0], names[1]), context)
    if not text:
        console.print(f"{names[0]} and {names[1]} are equal", highlight=False, soft_wrap=True)
        return
    console.print(coloured(text.splitlines()), highlight=False, soft_wrap=True)


@dumps.command()
@clean_errors
def html(
    directory: Directory,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path("dump.html"),
) -> None:
    """Make an offline page of the last compile in DIR, a prepare together with its convert."""
    found = latest(compiles(directory))
    importlib.import_module("qcompiler.viz").save([compiled.path for compiled in found], out)
    console.print(f"{escape(str(out))}: {', '.join(escape(compiled.path.name) for compiled in found)}", highlight=False, soft_wrap=True)
