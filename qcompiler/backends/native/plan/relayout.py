"""Copies that bring a value into the order in which its reader wants it, and to where it is spread."""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.backends.native.emit.layer_code import LayerCode
from qcompiler.backends.native.plan.copies import copied
from qcompiler.backends.native.plan.layer import Bound, Lies, OfOne, image, rows
from qcompiler.backends.native.plan.place import Axes, Place, channels_last, dense, spread_shape
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.sizes import Sizes


@dataclass(frozen=True, eq=False)
class Spread(OfOne):
    """x as it is spread over the result of an op on `values`, one of which it is: nothing to compute."""

    values: tuple[str, ...]

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.x, *(name for name in self.values if name != self.x))

    def by_sample(self, samples: Samples) -> bool:
        return samples.may_spread(self.values, self.out)

    def shape(self, sizes: Sizes) -> Axes:
        return spread_shape(*map(sizes.shape, self.values))

    def place(self, sizes: Sizes) -> Place:
        return sizes.place(self.x).spread(sizes.shape(self.out))


@dataclass(frozen=True, eq=False)
class Relayout(OfOne):
    """x as its reader wants it to lie; a copy where it does not.

    `wants`: "pixels" (channels side by side, evenly spaced pixels, in `dims` dimensions of space), "rows" (the last dimension side by
    side), "like" (in the order of the value `other`), or "even" (in the order of its dimensions, with nothing between its elements).
    """

    wants: str
    dims: int = 0
    other: str = ""

    def lies(self, known: Lies) -> str | None:
        return known.get(self.other) if self.wants == "like" else "rows" if self.wants == "even" else self.wants

    def by_sample(self, samples: Samples) -> bool:
        return True

    def _order(self, sizes: Sizes, given: Place) -> Axes:
        rank = len(given.shape)
        if self.wants == "like":
            other = sizes.place(self.other).order
            return tuple(d - (len(other) - rank) for d in other if d >= len(other) - rank)
        return channels_last(rank, rank == self.dims + 2) if self.wants == "pixels" else tuple(range(rank))

    def place(self, sizes: Sizes) -> Place:
        given = sizes.place(self.x)
        order, around = self._order(sizes, given), sizes.around(self.out)
        if not around and self._lies(given, order):
            return given
        sizes.copies[self.out] = sizes.buffer(given.shape, order, given.size, around)
        return sizes.copies[self.out]

    def _lies(self, given: Place, order: Axes) -> bool:
        if self.wants == "even":
            wanted, _, _ = dense(given.shape, order, given.size)
            return all(n == 1 or a == b for n, a, b in zip(given.shape, given.strides, wanted, strict=True))
        inner = next((d for d in reversed(order) if given.shape[d] != 1), None)
        if inner is not None and given.strides[inner] != given.size and not (self.wants == "like" and given.strides[inner] == 0):
            return False
        if self.wants == "like":
            return True
        try:
            made = image(given, self.dims) if self.wants == "pixels" else rows(given)[0]
        except ValueError:
            return False
        _, d, h, w = made.strides
        return self.wants == "rows" or (w > 0 and h % w == 0 and d % w == 0)

    @property
    def owns(self) -> bool:
        return False

    def bind(self, sizes: Sizes) -> Bound:
        return copied(self, sizes)

    def code(self, to: LayerCode) -> None:
        to.copy()
        to.halo(self.out)

    def text(self) -> str:
        return f"relayout {self.x} as {self.wants} {self.other}".rstrip()
