"""A table that fits the width it is printed at: it leaves out columns, the least important first, and never folds a name."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

GAP, SPACE = 2, 1  # between columns; of it, what the box draws
LEAST_TEXT, LEAST_NAME, LONG_NAME = 28, 12, 32  # to be readable: of prose, of a name; longer names are cut before a column is left out
WIDTH = 120  # of text for what is no terminal


@dataclass(frozen=True)
class Column:
    """`rank`: columns with higher ranks are left out first, 0 stays. `names`: cells may lose their beginnings; `prose`: they may wrap."""

    header: str
    cells: Sequence[str]
    rank: int = 0
    right: bool = False
    names: bool = False
    prose: bool = False
    styles: Sequence[str] = ()

    @property
    def width(self) -> int:
        """What it takes to show all of it; of prose, what it takes to read it."""
        from rich.cells import cell_len

        full = max(map(cell_len, (self.header, *self.cells)))
        return min(full, LEAST_TEXT) if self.prose else full

    @property
    def least(self) -> int:
        return min(self.width, LEAST_NAME) if self.names else self.width


@dataclass(frozen=True)
class FittedTable:
    """A rich renderable. Columns without anything in them are left out; a caption names those that want a wider terminal."""

    title: str
    columns: Sequence[Column]
    caption: str = ""

    def fitting(self, width: int) -> tuple[list[Column], list[Column]]:
        """(shown, left out) at this width."""
        filled = [c for c in self.columns if any(c.cells)] or list(self.columns[:1])
        kept: list[Column] = []
        for column in sorted(filled, key=lambda c: c.rank):
            if not column.rank or self._room(width, [*kept, column]) >= 0:
                kept.append(column)
        return [c for c in filled if c in kept], [c for c in filled if c not in kept]

    def _room(self, width: int, columns: Sequence[Column]) -> int:
        """What is left of the width when names are cut to LONG_NAME."""
        needed = sum(min(c.width, LONG_NAME) if c.names else c.width for c in columns)
        return width - needed - GAP * (len(columns) - 1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[object]:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        shown, hidden = self.fitting(options.max_width)
        more = f"a wider terminal shows {', '.join(c.header for c in hidden)}" if hidden else ""
        caption = "; ".join(filter(None, (self.caption, more)))
        table = Table(title=Text(self.title, "italic"), title_justify="left", caption=Text(caption, "dim") if caption else None,
                      caption_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - SPACE, 0, 0))  # fmt: skip
        widths = name_widths(shown, options.max_width)
        for column in shown:
            table.add_column(column.header, justify="right" if column.right else "left", no_wrap=not column.prose)
        for i in range(len(shown[0].cells)):
            table.add_row(*(Text(ending(c.cells[i], widths.get(c.header, 0)), c.styles[i] if c.styles else "") for c in shown))
        yield table


def name_widths(columns: Sequence[Column], width: int) -> dict[str, int]:
    """The columns of each column of names, which share what the others leave; the longest gives first."""
    names = {c.header: c.width for c in columns if c.names}
    least = {c.header: c.least for c in columns}
    room = width - sum(c.width for c in columns if not c.names) - GAP * (len(columns) - 1)
    while sum(names.values()) > room and any(names[h] > least[h] for h in names):
        longest = max((h for h in names if names[h] > least[h]), key=lambda h: names[h])
        names[longest] -= 1
    return names


def ending(text: str, width: int) -> str:
    """The text, or its end where it is longer: the last parts of a path tell modules apart. Width 0: all of it."""
    return text if not width or len(text) <= width else "…" + text[len(text) - width + 1 :]


def as_text(*parts: object) -> str:
    """What `print` shows of renderables and strings, as wide as the terminal (COLUMNS, else 120 where there is none)."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=max(shutil.get_terminal_size((WIDTH, 24)).columns, 40), color_system=None)
    for part in parts:
        console.print(part, markup=False, highlight=False, soft_wrap=isinstance(part, str))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
