"""Offsets of buffers in one arena: buffers whose times overlap do not overlap in memory. The largest are placed first."""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.backends.native.plan.sizes import LINE, Buffer


def arrange(buffers: Sequence[Buffer]) -> tuple[list[int], int]:
    """The offset of each buffer, and the bytes of the arena."""
    offsets, total = [0] * len(buffers), 0
    placed: list[int] = []
    for index in sorted(range(len(buffers)), key=lambda i: (-buffers[i].bytes, i)):
        here = buffers[index]
        taken = [(offsets[i], offsets[i] + _rounded(buffers[i].bytes)) for i in placed if _meet(buffers[i], here)]
        offsets[index] = _gap(sorted(taken), _rounded(here.bytes))
        total = max(total, offsets[index] + _rounded(here.bytes))
        placed.append(index)
    return offsets, total


def _meet(a: Buffer, b: Buffer) -> bool:
    return a.first <= b.last and b.first <= a.last


def _gap(taken: Sequence[tuple[int, int]], length: int) -> int:
    """The lowest offset at which `length` bytes are free."""
    start = 0
    for low, high in taken:
        if low - start >= length:
            break
        start = max(start, high)
    return start


def _rounded(length: int) -> int:
    return -(-length // LINE) * LINE
