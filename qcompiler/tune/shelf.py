"""Where the values of batches lie between two pieces of a graph, and the results: some in memory, the others in a file without a name."""

from __future__ import annotations

import math
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TypeAlias

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from qcompiler.tune.let_go import SPARE, give_back

ROOM = 2**22  # bytes that stay in memory
LEAST = 2**16  # bytes up to which a tensor stays in memory in any case
Values: TypeAlias = dict[fx.Node, object]


@dataclass(frozen=True)
class Written:
    """A tensor in a file."""

    file: IO[bytes]
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self) -> Tensor:
        return self._numbers(0, math.prod(self.shape)).as_strided(self.shape, self.strides)

    def pieces(self, count: int) -> Iterator[Tensor]:
        """As `pieces`; of one whose numbers lie in another order all are in memory at once."""
        if not torch.empty(self.shape, device="meta").as_strided(self.shape, self.strides).is_contiguous():
            return pieces(self.read(), count)
        total = math.prod(self.shape)
        return (self._numbers(at, min(count, total - at)) for at in range(0, total, count))

    def _numbers(self, first: int, count: int) -> Tensor:
        """Some of them, in the order of memory."""
        made = torch.empty(count * self.dtype.itemsize, dtype=torch.uint8)
        self.file.seek(self.start + first * self.dtype.itemsize)
        self.file.readinto(_bytes(made))  # type: ignore[attr-defined]
        return made.view(self.dtype)


def pieces(value: Tensor | Written, count: int) -> Iterator[Tensor]:
    """The numbers of a tensor in order, so many at a time."""
    return value.pieces(count) if isinstance(value, Written) else iter(value.reshape(-1).split(count))


def _bytes(flat: Tensor) -> memoryview:
    """The memory of a tensor of bytes."""
    return memoryview(flat.numpy())  # type: ignore[arg-type]


class NamelessFile:
    """Tensors one behind the other, in a file that is there once something is put, and goes with this object."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._at = 0

    def put(self, value: Tensor) -> Written:
        """Raises OSError where there is no folder for it, or no room there."""
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
            weakref.finalize(self, self._file.close)
        self._file.seek(self._at)
        self._file.write(_bytes(value.as_strided((value.numel(),), (1,)).view(torch.uint8)))
        made = Written(self._file, self._at, value.dtype, tuple(value.shape), value.stride())
        self._at += value.nbytes
        return made

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def empty(self) -> None:
        self._at = 0
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate()


class Shelf:
    """The values of each batch, put and taken in turn. What is put between two calls of `turn` lies in one file, and what was put before
    in another, whose room is given back. Where no file can be written, all stays in memory."""

    def __init__(self, room: int | None = None) -> None:
        """`room`: bytes that stay in memory."""
        self.room = ROOM if room is None else room
        self._held: dict[int, Values] = {}
        self._read, self._write = NamelessFile(), NamelessFile()

    def put(self, number: int, values: Mapping[fx.Node, object]) -> None:
        made: Values = {}
        left = self.room - self._in_memory()
        for node, value in values.items():
            made[node] = value
            if isinstance(value, Tensor):
                if value.nbytes > max(left, LEAST) and can_be_written(value):
                    made[node] = self._written(value)
                else:
                    left -= value.nbytes
        self._held[number] = made

    def take(self, number: int) -> Values:
        """What was put, as it was, with the strides that it had. It is no longer here."""
        values = self.look(number)
        self._held.pop(number, None)
        return values

    def look(self, number: int) -> Values:
        """As `take`, and it stays here."""
        return {node: value.read() if isinstance(value, Written) else value for node, value in self._held.get(number, {}).items()}

    def turn(self) -> None:
        """All has been taken and put once more."""
        self._read, self._write = self._write, self._read
        self._write.empty()
        give_back(SPARE)

    def _in_memory(self) -> int:
        return sum(value.nbytes for held in self._held.values() for value in held.values() if isinstance(value, Tensor))

    def _written(self, value: Tensor) -> object:
        try:
            return self._write.put(value)
        except OSError:
            self.room = 2**63
            return value


class Results(Sequence[object]):
    """What a model gives for each batch, read from here one at a time: `ROOM` bytes in memory, the rest in a file."""

    def __init__(self, found: Iterable[object]) -> None:
        self._left, self._file = ROOM, NamelessFile()
        self._kept = [tree_map_only(Tensor, self._put, one) for one in found]

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, number: int) -> object:  # type: ignore[override]
        return tree_map_only(Written, Written.read, self._kept[number])

    def _put(self, value: Tensor) -> object:
        if value.nbytes <= max(self._left, LEAST) or not can_be_written(value):
            self._left -= value.nbytes
            return value
        try:
            return self._file.put(value)
        except OSError:
            self._left = 2**63
            return value


def can_be_written(value: Tensor) -> bool:
    """A plain tensor that fills a piece of memory, in whatever order of its dimensions."""
    if type(value) is not Tensor or value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_neg():
        return False
    room = 1
    for stride, size in sorted(pair for pair in zip(value.stride(), value.shape, strict=True) if pair[1] != 1):
        if stride != room:
            return False
        room *= size
    return value.numel() > 0 and not value.is_complex()
