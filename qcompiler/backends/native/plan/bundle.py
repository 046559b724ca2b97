"""Several values as one: what an op gives that has more than one result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qcompiler.backends.native.plan.layer import Layer
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.sizes import Sizes

Parts = str | tuple["Parts", ...]  # names of values, perhaps nested


@dataclass(frozen=True, eq=False)
class Bundle(Layer):
    """Several values as one, perhaps nested."""

    parts: Parts

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(_names(self.parts))

    def by_sample(self, samples: Samples) -> bool:
        return samples.holds(self.reads)

    def shape(self, sizes: Sizes) -> object:
        return _each(self.parts, sizes.shape)

    def place(self, sizes: Sizes) -> object:
        return _each(self.parts, sizes.place)

    def part(self, index: object) -> str | None:
        """The value that stands at an index, where one does."""
        found = self.parts[index] if isinstance(self.parts, tuple) and type(index) is int else None
        return found if isinstance(found, str) else None


def _names(parts: Parts) -> list[str]:
    return [parts] if isinstance(parts, str) else [name for part in parts for name in _names(part)]


def _each(parts: Parts, of: Callable[[str], object]) -> object:
    return of(parts) if isinstance(parts, str) else tuple(_each(part, of) for part in parts)
