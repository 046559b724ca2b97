"""Dumps: a directory per compile, with the graph behind every pass that changed it.

    DIR/0001-prepare-ResNet/
        run.json                        what was compiled, by which versions and process, what the dump holds
        00-input.ir .py                 the graph as it came in
        01-canonicalize.ir .py .diff    each pass that changed something
        99-final.ir .py                 the graph as it left
        plan.txt                        how a back end runs it that has a plan: layers, kernels, places in memory
        index.md  passes.jsonl          all passes in order; one JSON line each (schema/passes.schema.json)
        graph.json                      all of it as one document, for pages and drawings (qcompiler.viz)
        repro.py  repro.json  repro.safetensors     after an exception in a pass

Nothing is overwritten. Holds code and shapes, neither weights nor activations.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

from torch import fx

from qcompiler.compile.journal import PassRecord
from qcompiler.compile.pass_manager import Context, Pass, PassInstrument, tell
from qcompiler.debug import dump_index, dump_record
from qcompiler.debug.blocks import Scoped
from qcompiler.debug.environment import real_weights
from qcompiler.debug.printer import unified_diff
from qcompiler.debug.record import Recorder
from qcompiler.debug.reproducer import Failure, write
from qcompiler.errors import ConfigError, QCompilerError
from qcompiler.executable import Executable
from qcompiler.ir.text import format_graph

LOG = logging.getLogger("qcompiler")
LEVELS = ("index", "diff", "full")


class Dump(Scoped):
    """Dumps every compile that it watches into `directory`; `paths` lists the directories made.

    `passes`: a glob, whose passes get files of their own. `level`: index (no files for passes), diff (their diffs), full (text,
    Python and diff). A directory that cannot be written costs one warning and changes no result.
    """

    def __init__(self, dir: str | os.PathLike[str], passes: str = "*", level: str = "full") -> None:
        if level not in LEVELS:
            raise ConfigError(f"a dump's level is one of {', '.join(LEVELS)}, not {level!r}", code="debug")
        if Path(dir).exists() and not Path(dir).is_dir():
            raise ConfigError(f"dumps need a directory, and {str(dir)!r} is a file", code="debug")
        self.directory, self.passes, self.level = Path(dir), passes, level
        self.paths: list[Path] = []

    def start(self, phase: str, model: str, context: Context) -> DumpDirectory:
        made = DumpDirectory(self, phase, model, context)
        if made.path is not None:
            self.paths.append(made.path)
        return made


dump = Dump  # `with qcompiler.debug.dump(dir=...):`


class DumpDirectory(PassInstrument):
    """The instrument of one compile."""

    def __init__(self, settings: Dump, phase: str, model: str, context: Context) -> None:
        self.settings, self.phase, self.model = settings, phase, model
        self.path: Path | None = None
        self.text, self.code = "", ("", "")
        self.gm: fx.GraphModule | None = None
        self.state: dump_record.State | None = None
        self.entries: list[dump_index.Entry] = []
        self.failure: Failure | None = None  # of a graph that cannot be copied there is none
        self.rss: int | None = None
        self.error = ""
        self.recorder = Recorder(model)
        try:
            self.path = _new_directory(settings.directory, f"{phase}-{re.sub(r'[^A-Za-z0-9_]', '_', model)[:80]}")
        except OSError as error:
            self._give_up(error)
            return
        self._write("run.json", lambda: _json(dump_record.run(phase, model, context, weights=False)))
        LOG.info("dumping the passes of %s to %s", phase, self.path)

    def before(self, step: Pass, gm: fx.GraphModule, context: Context) -> None:
        if self.path is None:
            return
        tell([self.recorder], "before", context, step, gm, context)
        self.rss = dump_record.resident_bytes()
        if self.failure is not None:
            self.failure.steps.append(step)
        if self.state is None:
            self.text, self.gm, self.state = format_graph(gm.graph), gm, dump_record.State.of(gm)
            self._write("00-input.ir", lambda: self.text)
            self._write("00-input.py", self._python)
            self.failure = Failure(gm, context, context.stage, step)

    def after(self, step: Pass, gm: fx.GraphModule, context: Context, record: PassRecord) -> None:
        if self.path is None or self.state is None:
            return
        tell([self.recorder], "after", context, step, gm, context, record)
        before, state, text = self.state, dump_record.State.of(gm, self.state), format_graph(gm.graph)
        constants = state.changed_constants(before)
        changed = text != self.text or bool(constants)
        wanted = changed and fnmatchcase(step.name, self.settings.passes)
        stem = f"{len(self.entries) + 1:02d}-{re.sub(r'[^A-Za-z0-9_.-]', '_', step.name)}"
        previous, self.text, self.gm = self.text, text, gm
        files = self._files(stem, previous, constants) if wanted else []
        line = dump_record.line(len(self.entries) + 1, record, changed, before, state, self.rss)
        self._write("passes.jsonl", lambda: json.dumps(line, sort_keys=True) + "\n", append=True)
        self.entries.append(dump_index.Entry(record, changed, tuple(files)))
        self.state = state

    def _files(self, stem: str, before: str, constants: list[str]) -> list[str]:
        def diff() -> str:
            values = "".join(f"# new values: {name}\n" for name in constants)
            return unified_diff(before, self.text) + values

        kinds: dict[str, Callable[[], str]] = {".diff": diff}
        if self.settings.level == "full":
            kinds = {".ir": lambda: self.text, ".py": self._python, ".diff": diff}
        kinds = {} if self.settings.level == "index" else kinds
        for suffix, make in kinds.items():
            self._write(stem + suffix, make)
        return [stem + suffix for suffix in kinds]

    def on_error(self, step: Pass, gm: fx.GraphModule, context: Context, error: QCompilerError) -> None:
        self.error = f"pass {step.name}: {type(error).__name__} ({error.code}): {error.message}"
        if self.path is None or self.failure is None:
            return
        try:
            weights = real_weights()
            error.reproducer = str(write(self.path, self.failure, self.phase, self.model, error, weights))
            self._write("run.json", lambda: _json(dump_record.run(self.phase, self.model, context, weights)))
        except OSError as problem:
            self._give_up(problem)

    def built(self, module: Executable, context: Context) -> None:
        if self.path is None:
            return
        tell([self.recorder], "built", context, module, context)
        plan = module._plan(())
        if plan is not None:
            self._write("plan.txt", lambda: plan.text)

    def finish(self, context: Context) -> None:
        """Writes what needs the whole run: the final graph, the index and the remarks."""
        unmatched = bool(self.entries) and not any(fnmatchcase(e.record.name, self.settings.passes) for e in self.entries)
        note = f"No pass matches the filter {self.settings.passes!r}." if unmatched else ""
        if note and self.path is not None:
            LOG.warning("%s: %s The passes are %s.", self.path, note, ", ".join(e.record.name for e in self.entries))
        self._write("99-final.ir", lambda: self.text)
        self._write("99-final.py", self._python)
        if self.entries:
            tell([self.recorder], "finish", context, context)
            self._write("graph.json", lambda: self.recorder.document().to_json())
        self._write("index.md", lambda: dump_index.text(f"{self.phase} {self.model}", self.entries, context, self.error, note))

    def _python(self) -> str:
        """The Python code of the graph as it stands, written once for each text."""
        if self.gm is not None and self.code[0] != self.text:
            self.code = (self.text, _python(self.gm))
        return self.code[1]

    def _write(self, name: str, make: Callable[[], str], *, append: bool = False) -> None:
        """Writes one file, of which only this user can read; the first failure ends the dump."""
        if self.path is None:
            return
        try:
            with open(self.path / name, "a" if append else "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(make())
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        where = self.path or self.settings.directory
        self.path = None
        LOG.warning("no more pass dumps in %s: %s; the compilation goes on", where, error)


def _json(data: object) -> str:
    return json.dumps(data, indent=1, sort_keys=True) + "\n"


def _python(gm: fx.GraphModule) -> str:
    """The graph's Python code. torch.fx cannot write some graphs, for instance with a quote in a module's name."""
    try:
        return str(gm.graph.python_code("self").src).lstrip("\n")
    except Exception as error:
        return f"# torch.fx cannot write this graph as Python: {type(error).__name__}: {error}\n".replace("\n", " ") + "\n"


def _new_directory(parent: Path, name: str) -> Path:
    """The next free number; created for this user alone."""
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    numbers = (re.match(r"(\d{4,})-", entry.name) for entry in parent.iterdir())
    number = 1 + max((int(found[1]) for found in numbers if found), default=0)
    while True:
        try:
            path = parent / f"{number:04d}-{name}"
            path.mkdir(mode=0o700)
            return path
        except FileExistsError:
            number += 1
