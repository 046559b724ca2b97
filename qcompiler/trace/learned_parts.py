"""What the traces of one model tell the next ones: which statements run as they stand."""

from __future__ import annotations

from collections.abc import Callable

from qcompiler.trace.float_source import Part


class NewPart(BaseException):
    """The trace has to begin anew: with a part more, or, where `refused` says why, without it. (No `except Exception` of the user's
    code takes it.)"""

    def __init__(self, part: Part, why: str, refused: bool = False) -> None:
        super().__init__(part)
        self.part, self.why, self.refused = part, why, refused


class Parts:
    """What the traces of one model have learned: the parts with the reasons, what cannot be one, and the functions made so far."""

    def __init__(self) -> None:
        self.chosen: dict[Part, str] = {}
        self.refused: dict[Part, str] = {}
        self.functions: dict[tuple[object, ...], Callable[..., object]] = {}
        self.namespaces: dict[int, dict[str, object]] = {}  # the globals of functions that failed: by them the functions are found

    def add_namespace(self, namespace: dict[str, object]) -> None:
        self.namespaces[id(namespace)] = namespace

    def learn(self, new: NewPart) -> None:
        self.chosen = {part: why for part, why in self.chosen.items() if not new.part.covers(part)}
        (self.refused if new.refused else self.chosen)[new.part] = new.why
