"""Instruments that watch every compile of a `with` block."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Self

from qcompiler.compile.pass_manager import PassInstrument

_BLOCKS: ContextVar[tuple[object, ...]] = ContextVar("qcompiler.debug", default=())


def of_blocks() -> tuple[object, ...]:
    """The instruments of the blocks around, in this thread; the outermost first."""
    return _BLOCKS.get()


class Scoped(PassInstrument):
    """An instrument that watches every compile of a `with` block, in this thread."""

    def __enter__(self) -> Self:
        _BLOCKS.set((*_BLOCKS.get(), self))
        return self

    def __exit__(self, *error: object) -> None:
        found = list(_BLOCKS.get())
        found.remove(self)
        _BLOCKS.set(tuple(found))
