"""Values that lie in a part of another value."""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.backends.native.plan.place import Axes


@dataclass(frozen=True)
class Home:
    """A value that lies in a part of another: behind the values `before` along `dim` of `whole`."""

    whole: str
    dim: int
    before: tuple[str, ...]


@dataclass(frozen=True)
class Every:
    """A value whose dimensions of space are every `steps`-th element of another's, from `starts` on."""

    whole: str
    starts: Axes
    steps: Axes
