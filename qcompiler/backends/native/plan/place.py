"""Where a value lies: a shape in torch's order, byte strides, and an offset in one of the arena's buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Axes = tuple[int, ...]  # one number for each dimension
CONSTANTS = -1  # the number of the buffer that holds the network's tensors


def of_caller(index: int) -> int:
    """The number of the buffer that is tensor `index` of those that the caller gives and gets."""
    return -2 - index


SETTLED = -(1 << 15)  # and below: the numbers of what stands beside the sizes


def settled_at(index: int) -> int:
    """The number of the buffer that is value `index` of those that were computed from the sizes."""
    return SETTLED - index


@dataclass(frozen=True)
class Place:
    """`strides` and `offset` in bytes, `offset` from the start of buffer number `buffer`, which is one of the arena's where it is not
    negative; `size`: bytes of an element.
    """

    shape: Axes
    strides: Axes
    offset: int
    buffer: int
    size: int = 1

    @property
    def order(self) -> Axes:
        """The dimensions from the slowest to the fastest; of two with one stride, one of length 1 is the faster."""
        return tuple(sorted(range(len(self.shape)), key=lambda i: (-self.strides[i], self.shape[i] == 1, i)))

    def meta(self) -> Tensor:
        """A tensor without data that has these strides: torch's own view functions say what a view of this place is."""
        strides = [s // self.size for s in self.strides]
        return torch.empty_strided(self.shape, strides, dtype=torch.uint8, device="meta")

    def viewed(self, view: Tensor) -> Place:
        """The place of a view that was made of `meta()`."""
        moved = self.offset + int(view.storage_offset()) * self.size
        return replace(self, shape=tuple(view.shape), strides=tuple(s * self.size for s in view.stride()), offset=moved)

    def is_side_by_side(self, stride: int, length: int) -> bool:
        """Whether that many elements with this stride lie so. A single one does, and so do those of an empty value, which has none."""
        return stride == self.size or length == 1 or 0 in self.shape

    def narrow(self, dim: int, start: int, length: int) -> Place:
        shape = tuple(length if i == dim else n for i, n in enumerate(self.shape))
        return replace(self, shape=shape, offset=self.offset + start * self.strides[dim])

    def every(self, shape: Axes, starts: Axes, steps: Axes) -> Place:
        """The part of this shape that takes every `steps`-th element of the last dimensions, from `starts` on."""
        first = len(self.shape) - len(steps)
        offset = self.offset + sum(start * stride for start, stride in zip(starts, self.strides[first:], strict=True))
        strides = (*self.strides[:first], *(step * stride for step, stride in zip(steps, self.strides[first:], strict=True)))
        return replace(self, shape=shape, strides=strides, offset=offset)

    def spread(self, shape: Sequence[int]) -> Place:
        """As an operand of a result of this shape: strides of 0 where it is repeated. Raises ValueError where it cannot be."""
        more = len(shape) - len(self.shape)
        own, strides = (1,) * more + self.shape, (0,) * more + self.strides
        if more < 0 or any(n not in (1, m) for n, m in zip(own, shape, strict=True)):
            raise ValueError(f"{self.shape} does not spread over {tuple(shape)}")
        spread = tuple(s if n == m else 0 for n, m, s in zip(own, shape, strides, strict=True))
        return replace(self, shape=tuple(shape), strides=spread)


def spread_shape(*shapes: Axes) -> Axes:
    """The shape of a result whose operands are spread over one another. Raises what torch raises where they cannot be.

    torch's own function costs half a second the first time, for algebra that symbols alone need.
    """
    if all(isinstance(n, int) for shape in shapes for n in shape):
        rank = max(map(len, shapes))
        columns = zip(*((1,) * (rank - len(shape)) + tuple(shape) for shape in shapes), strict=True)
        made = tuple(next((n for n in column if n != 1), 1) for column in columns)
        if all(n in (1, m) for shape in shapes for n, m in zip(reversed(shape), reversed(made), strict=False)):
            return made
    return tuple(torch.broadcast_shapes(*shapes))


def dense(shape: Sequence[int], order: Sequence[int], size: int = 1, around: Mapping[int, int] | None = None) -> tuple[Axes, int, int]:
    """Strides, the first element's offset and the bytes of a new buffer whose dimensions lie in `order`, the slowest first.

    `around`: how many elements of a halo lie on both sides of a dimension. Where a dimension is empty, strides are those of length 1, as
    in torch: views of it are what they are elsewhere.
    """
    around = around or {}
    strides, offset, pitch = [0] * len(shape), 0, size
    for dim in reversed(order):
        strides[dim] = pitch
        offset += around.get(dim, 0) * pitch
        pitch *= max(1, shape[dim]) + 2 * around.get(dim, 0)
    return tuple(strides), offset, pitch


def channels_last(rank: int, batched: bool = True) -> Axes:
    """The order that kernels take: batch, space, channels."""
    first = 1 if batched else 0
    return (*range(first), *range(first + 1, rank), first) if rank > first else tuple(range(rank))
