"""Dump directories, read back: which compiles there are, their passes, and the graph's text behind each."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qcompiler.errors import ConfigError

INPUT, FINAL = "input", "final"


@dataclass(frozen=True)
class DumpedCompile:
    """One directory of a dump."""

    path: Path

    @cached_property
    def run(self) -> dict[str, Any]:
        """run.json."""
        data = _parsed(self.path / "run.json", self._text("run.json"))
        if not isinstance(data, dict) or not isinstance(data.get("phase"), str):
            raise ConfigError(f"{self.path / 'run.json'} is not what a dump writes", code="dump-damaged")
        return data

    @cached_property
    def passes(self) -> list[dict[str, Any]]:
        """The lines of passes.jsonl; a last line that was cut short is left out."""
        lines = self._text("passes.jsonl").splitlines() if (self.path / "passes.jsonl").exists() else []
        return [_parsed(self.path / "passes.jsonl", line) for line in lines if line.endswith("}")]

    @property
    def failed(self) -> bool:
        return (self.path / "repro.py").exists()

    def stem(self, name: str) -> str | None:
        """The files of a graph: `input`, `final`, a pass by name or number. An unchanged pass has those of the one before it."""
        if name in (INPUT, "0", "00", "00-input"):
            return "00-input"
        if name in (FINAL, "99", "99-final"):
            return "99-final"
        found = [p for p in self.passes if name in (p["name"], str(p["seq"]), f"{p['seq']:02d}", f"{p['seq']:02d}-{p['name']}")]
        if not found:
            return None
        last = next((p for p in reversed(self.passes[: found[0]["seq"]]) if p["changed"]), None)
        return "00-input" if last is None else f"{last['seq']:02d}-{re.sub(r'[^A-Za-z0-9_.-]', '_', last['name'])}"

    def graph(self, name: str) -> str:
        """The graph's text there. ConfigError where the dump does not have it."""
        stem = self.stem(name)
        if stem is None or not (self.path / f"{stem}.ir").exists():
            why = "has no such pass" if stem is None else 'has no text of it: it was dumped with a filter, or not at level="full"'
            names = ", ".join([INPUT, *(p["name"] for p in self.passes), FINAL])
            raise ConfigError(f"{name}: {self.path} {why}", code="dump-pass", hint=f"known: {names}")
        return self._text(f"{stem}.ir")

    def _text(self, name: str) -> str:
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.path / name} cannot be read: {error}", code="dump-unreadable") from error


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}", code="dump-damaged") from None


def compiles(directory: Path) -> list[DumpedCompile]:
    """The compiles of a dump directory, in order; of one compile's directory, that one. ConfigError where there are none."""
    if (directory / "run.json").is_file():
        return [DumpedCompile(directory)]
    try:
        found = [p for p in directory.iterdir() if re.match(r"\d{4,}-", p.name) and (p / "run.json").is_file()]
    except OSError as error:
        raise ConfigError(f"{directory} cannot be read: {error.strerror}", code="dump-unreadable") from error
    if not found:
        raise ConfigError(f"{directory} holds no dumps", code="no-dumps", hint="QCOMPILER_DEBUG=folder, or debug=folder, writes them")
    return [DumpedCompile(path) for path in sorted(found, key=lambda p: int(p.name.split("-")[0]))]


def latest(found: Sequence[DumpedCompile]) -> list[DumpedCompile]:
    """The last compile with those that belong to it: a prepare and its convert."""
    return [c for c in found if c.run.get("id") == found[-1].run.get("id")]


def with_pass(found: Sequence[DumpedCompile], name: str) -> DumpedCompile:
    """The compile that has a pass of that name: of the last model the first, else an earlier one. `0002/lower` says which."""
    number, _, bare = name.rpartition("/")
    fitting = [c for c in found if not number or c.path.name.startswith(number)]
    last = latest(fitting) if fitting else []
    order: list[DumpedCompile] = [*(reversed(last) if bare == FINAL else last), *reversed(fitting)]
    chosen = next((c for c in order if c.stem(bare) is not None), None)
    if chosen is None:
        names = ", ".join(dict.fromkeys(p["name"] for c in fitting or found for p in c.passes))
        raise ConfigError(f"no compile here has a pass {name!r}", code="dump-pass", hint=f"known: {INPUT}, {names}, {FINAL}")
    return chosen
