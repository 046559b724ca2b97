"""The constants of a network: packed weights and tables in one piece of memory, and plain numbers. The C knows their places alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

LINE = 64
SLACK = 128  # kernels read past the end of what they use: QC_SLACK


def room_of(length: int) -> int:
    """The bytes that a block of `length` bytes takes."""
    return -(-(length + SLACK) // LINE) * LINE


@dataclass
class Constants:
    """Everything in it follows from tensors and qparams, so other weights need no other C."""

    blocks: list[tuple[int, NDArray[np.uint8]]] = field(default_factory=list)  # with their offsets, up to `write`
    size: int = 0
    integers: list[int] = field(default_factory=list)
    reals: list[float] = field(default_factory=list)  # float32
    doubles: list[float] = field(default_factory=list)

    def data(self, values: NDArray[Any]) -> int:
        """The offset of an array's bytes, at the start of a cache line."""
        offset, raw = self.size, np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self.blocks.append((offset, raw))
        self.size += room_of(len(raw))
        return offset

    def integer(self, value: int) -> int:
        self.integers.append(int(value))
        return len(self.integers) - 1

    def real(self, value: float) -> int:
        self.reals.append(float(np.float32(value)))
        return len(self.reals) - 1

    def double(self, value: float) -> int:
        self.doubles.append(float(value))
        return len(self.doubles) - 1

    def write(self, memory: NDArray[np.uint8]) -> None:
        """Puts all blocks, and the zeros behind each, into `size` bytes. They are let go on the way: weights are there once."""
        while self.blocks:
            offset, raw = self.blocks.pop()
            end = offset + len(raw)
            memory[offset:end] = raw
            memory[end : offset + room_of(len(raw))] = 0
