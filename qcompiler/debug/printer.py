"""Prints the graph behind each pass to stderr: QCOMPILER_PRINT=after|changed|diff[:pass-glob]."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import fx

from qcompiler.compile.journal import PassRecord
from qcompiler.compile.pass_manager import Context, Pass
from qcompiler.debug.blocks import Scoped
from qcompiler.ir.text import format_graph

LOG = logging.getLogger("qcompiler")
MODES = ("after", "changed", "diff")
STYLES = {"+": "green", "-": "red", "@": "cyan"}


def unified_diff(before: str, after: str, names: tuple[str, str] = ("before", "after"), context: int = 2) -> str:
    """The lines that differ between two texts, with some around them."""
    return "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), *names, n=context))


def coloured(lines: Iterable[str]) -> object:
    """A diff as rich text: added green, removed red, places cyan; the signs stay, for those who see no colour."""
    from rich.text import Text

    text = Text()
    for line in lines:
        heading = line.startswith(("+++", "---"))
        text.append(line + "\n", "bold" if heading else STYLES.get(line[:1]))
    text.right_crop(1)
    return text


class Printer(Scoped):
    """Prints to stderr. `mode`: after (every pass), changed (the graph where it changed), diff (what changed). `passes`: a glob."""

    def __init__(self, mode: str = "changed", passes: str = "*") -> None:
        if mode not in MODES:
            raise ValueError(f"{mode!r} is none of {', '.join(MODES)}")
        self.mode, self.passes = mode, passes
        self.title, self.text, self.seen, self.matched = "", "", list[str](), False

    @staticmethod
    def read(text: str) -> Printer:
        """The printer of a setting such as `diff:fuse*`. ValueError where it has no such form."""
        mode, _, passes = text.partition(":")
        return Printer(mode, passes or "*")

    def start(self, phase: str, model: str, context: Context) -> Printer:
        made = Printer(self.mode, self.passes)
        made.title = f"{phase} {model}"
        return made

    def before(self, step: Pass, gm: fx.GraphModule, context: Context) -> None:
        if not self.seen:
            self.text = format_graph(gm.graph)
        self.seen.append(step.name)

    def after(self, step: Pass, gm: fx.GraphModule, context: Context, record: PassRecord) -> None:
        before, self.text = self.text, format_graph(gm.graph)
        if not fnmatchcase(step.name, self.passes):
            return
        self.matched = True
        heading = f"*** {self.title}: {'not run: ' if record.skipped else 'after '}{step.name}"
        if self.text == before and self.mode != "after":
            self._print(f"{heading}: no change")
        elif self.mode == "diff":
            self._print(heading, unified_diff(before, self.text, context=1))
        else:
            self._print(heading, self.text)

    def on_error(self, step: Pass, gm: fx.GraphModule, context: Context, error: Exception) -> None:
        self._print(f"*** {self.title}: {step.name} FAILED, the graph before it", self.text)

    def finish(self, context: Context) -> None:
        if self.seen and not self.matched:
            self._print(f"*** {self.title}: no pass matches {self.passes!r}; the passes are {', '.join(self.seen)}")

    def _print(self, heading: str, text: str = "") -> None:
        from rich.console import Console
        from rich.text import Text

        console = Console(stderr=True, soft_wrap=True, highlight=False)
        console.print(Text(heading, "bold"))
        if text:
            lines = text.rstrip("\n").split("\n")
            console.print(coloured(lines) if self.mode == "diff" else Text("\n".join(lines)))
