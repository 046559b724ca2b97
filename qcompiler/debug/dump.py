"""Writes what every pass changed into a directory: text, Python, diff, an index and a JSON line a pass.

DIR/0001-prepare-ResNet/00-input.ir, 01-canonicalize.ir .py .diff, ..., 99-final.ir, index.md, passes.jsonl, run.json. Nothing
is overwritten; a pass that changes nothing gets a line and no files. Holds code and shapes, no weights and no activations.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
from pathlib import Path

import torch
from torch import fx

from qcompiler.ir.text import format_graph
from qcompiler.pass_manager import Context, Pass, PassRecord

LOG = logging.getLogger("qcompiler")


class Dump:
    """Instrument of one compile. A directory that cannot be written costs one warning and changes no result."""

    def __init__(self, directory: str | os.PathLike[str], phase: str, model: str) -> None:
        self.path: Path | None = None
        self.text, self.count = "", 0
        self.lines = [f"# {phase} {model}", "", "| # | pass | changed | nodes | ms |", "|---|---|---|---|---|"]
        try:
            self.path = _new_directory(Path(directory), f"{phase}-{re.sub(r'[^A-Za-z0-9_]', '_', model)}")
            self._write(
                "run.json",
                json.dumps({"phase": phase, "model": model, "pid": os.getpid(), "torch": torch.__version__}, indent=1, sort_keys=True),
            )
            LOG.info("dumping passes to %s", self.path)
        except OSError as error:
            self._give_up(error)

    def before(self, step: Pass, gm: fx.GraphModule, context: Context) -> None:
        if not self.text:
            self.text = format_graph(gm.graph)
            self._write("00-input.ir", self.text)

    def after(self, step: Pass, gm: fx.GraphModule, context: Context, record: PassRecord) -> None:
        self.count += 1
        text, stem = format_graph(gm.graph), f"{self.count:02d}-{step.name}"
        changed = text != self.text
        if changed:
            diff = difflib.unified_diff(self.text.splitlines(True), text.splitlines(True), "before", "after", n=2)
            self._write(f"{stem}.ir", text)
            self._write(f"{stem}.py", gm.graph.python_code("self").src)
            self._write(f"{stem}.diff", "".join(diff))
            self.text = text
        self.lines.append(
            f"| {self.count} | {step.name} | {'yes' if changed else 'no'} "
            f"| {record.nodes_before} → {record.nodes_after} | {record.milliseconds:.1f} |"
        )
        line = {"seq": self.count, "name": step.name, "changed": changed, "ms": round(record.milliseconds, 3),
                "nodes_before": record.nodes_before,                "nodes_after": record.nodes_after}  # fmt: skip
        self._write("passes.jsonl", json.dumps(line, sort_keys=True) + "\n", append=True)

    def finish(self, context: Context) -> None:
        """Writes what needs the whole run: the final text, the index and the remarks."""
        remarks = [f"- {r.pass_name} `{r.code}`: {r.text}" + (f" ({r.where})" if str(r.where) else "") for r in context.remarks]
        self._write("99-final.ir", self.text)
        self._write("index.md", "\n".join([*self.lines, "", "## Remarks", "", *remarks]) + "\n")

    def _write(self, name: str, text: str, *, append: bool = False) -> None:
        if self.path is None:
            return
        try:
            with open(self.path / name, "a" if append else "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.path = None
        LOG.warning("no more pass dumps: %s", error)


def _new_directory(parent: Path, name: str) -> Path:
    """The next free number; created for this user alone."""
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    number = 1 + max((int(p.name[:4]) for p in parent.iterdir() if re.match(r"\d{4}-", p.name)), default=0)
    while True:
        try:
            path = parent / f"{number:04d}-{name}"
            path.mkdir(mode=0o700)
            return path
        except FileExistsError:
            number += 1
