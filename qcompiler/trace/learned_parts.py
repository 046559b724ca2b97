"""What the traces of one model tell the next ones: which statements run as they stand."""

from __future__ import annotations

from collections.abc import Callable

from qcompiler.trace.called_from import Chain
from qcompiler.trace.float_source import Part


class NewPart(BaseException):
    """The trace has to begin anew: with a part more, at calls from `chain`, or, where `refused` says why, without it. (No `except
    Exception` of the user's code takes it.)"""

    def __init__(self, part: Part, why: str, refused: bool = False, chain: Chain = ()) -> None:
        super().__init__(part)
        self.part, self.why, self.refused, self.chain = part, why, refused, chain


class Parts:
    """What the traces of one model have learned: the parts with the reasons, what cannot be one, and the functions made so far."""

    def __init__(self) -> None:
        self.chosen: dict[Part, str] = {}
        self.calls: set[tuple[Part, Chain]] = set()  # where the parts are taken: elsewhere the same statements are followed
        self.refused: dict[Part, str] = {}
        self.functions: dict[tuple[object, ...], Callable[..., object]] = {}
        self.namespaces: dict[int, dict[str, object]] = {}  # the globals of functions that failed: by them the functions are found

    def add_namespace(self, namespace: dict[str, object]) -> None:
        self.namespaces[id(namespace)] = namespace

    def learn(self, new: NewPart) -> None:
        self.chosen = {part: why for part, why in self.chosen.items() if not new.part.covers(part)}
        (self.refused if new.refused else self.chosen)[new.part] = new.why
        self.calls.add((new.part, new.chain))

    def is_taken(self, part: Part, chain: Chain) -> bool:
        """Whether a part runs as it stands in a call from there. Where both values of a condition are computed, that is asked at each."""
        return part.is_followed or (part, chain) in self.calls

    @property
    def count(self) -> int:
        return len(self.calls)
