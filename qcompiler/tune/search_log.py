"""The file that a search goes on from: a line of JSON for each finished step, with the corrections of taken ones in files beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qcompiler.config.corrections import NO_CORRECTIONS, Corrections
from qcompiler.errors import ArtifactError, ConfigError
from qcompiler.executable import JSON
from qcompiler.files.atomic import atomic_write
from qcompiler.tune.score import Score


@dataclass(frozen=True)
class Step:
    """One step of a search: what it was, the score with it, its seconds, and whether it was taken or why not."""

    name: str
    score: Score | None
    seconds: float
    accepted: bool
    why: str
    changed: str = ""
    corrections: Corrections = NO_CORRECTIONS

    def to_data(self) -> dict[str, object]:
        """JSON data, without the corrections."""
        data = {key: getattr(self, key) for key in ("name", "seconds", "accepted", "why", "changed")}
        return data | {"score": None if self.score is None else asdict(self.score)}


class SearchLog:
    """`key`: what tells searches apart. Raises ConfigError for the log of another one, and for a file that is none."""

    def __init__(self, path: str | Path | None, key: Mapping[str, object]) -> None:
        self.path = None if path is None else Path(path)
        self.lines: list[dict[str, JSON]] = [{"search": dict(key)}]
        if self.path is None:
            return
        if self.path.exists():
            self.lines = _read(self.path)
            search = self.lines[0]["search"]
            other = [name for name, value in key.items() if not isinstance(search, dict) or search.get(name) != value]
            if other:
                raise ConfigError(f"{self.path} is the log of a search with another {' and '.join(other)}", code="tune-log",
                                  hint="name another file, or take this one away")  # fmt: skip
        else:
            self._write()

    def find(self, name: str, taken: Sequence[str]) -> Step | None:
        """The step of this name, if it was finished on top of the same steps: with others before it, it is another step."""
        data = next((line for line in self.lines[1:] if line.get("name") == name and line.get("taken") == list(taken)), None)
        if data is None or self.path is None:
            return None
        try:
            held = Corrections.load(self._beside(name)) if data["accepted"] else NO_CORRECTIONS
            score = None if data["score"] is None else Score(**data["score"])
            return Step(data["name"], score, data["seconds"], data["accepted"], data["why"], data["changed"], held)
        except (ArtifactError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.path}: step {name} cannot be read: {error!s:.200}", code="tune-log",
                              hint="the files beside it belong to it; name another log, or take them all away") from error  # fmt: skip

    def add(self, step: Step, taken: Sequence[str]) -> None:
        """A finished step, on top of those that were taken before it, in the place of one of its name."""
        if self.path is None:
            return
        if step.accepted:
            step.corrections.save(self._beside(step.name))
        self.lines = [line for line in self.lines if "search" in line or line.get("name") != step.name]
        self.lines.append({**step.to_data(), "taken": list(taken)})
        self._write()

    def _beside(self, name: str) -> Path:
        assert self.path is not None
        return self.path.with_name(f"{self.path.name}.{name}.safetensors")

    def _write(self) -> None:
        assert self.path is not None
        atomic_write(self.path, [f"{json.dumps(line)}\n".encode() for line in self.lines])


def _read(path: Path) -> list[dict[str, JSON]]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no log of a search: {error!s:.200}", code="tune-log", hint="name another file") from error
    if not lines or not all(isinstance(line, dict) for line in lines) or "search" not in lines[0]:
        raise ConfigError(f"{path} is no log of a search", code="tune-log", hint="name another file")
    return lines
