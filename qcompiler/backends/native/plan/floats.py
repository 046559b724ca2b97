"""Float values inside of a region: constants, what the caller gives and gets, and how layers of floats name their operands.

A value is codes where the planner knows what its codes mean, else floats. A layer of floats takes either, and makes either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.backends.native.emit.layer_code import Call, LayerCode
from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.copies import copied
from qcompiler.backends.native.plan.layer import Bound, Layer, Lies, OfOne, Pixels, merged
from qcompiler.backends.native.plan.place import CONSTANTS, Axes, Place, dense, of_caller
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.sizes import Sizes

FLOATS = "const float *"  # how the C reads a block of constants
FAR = 2**31  # steps between elements are held in 32 bits


@dataclass(frozen=True, eq=False)
class Constant(Layer):
    """A tensor of the network's, floats or codes: it lies in the data, and nothing computes it."""

    size: Axes
    codes: Codes | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    def shape(self, sizes: Sizes) -> Axes:
        return self.size

    def stays(self, samples: Samples) -> bool:
        return True

    def place(self, sizes: Sizes) -> Place:
        strides, _, _ = dense(self.size, range(len(self.size)), width(self.codes))
        return Place(self.size, strides, sizes.network.constant_offsets[self.out], CONSTANTS, width(self.codes))

    def lies(self, known: Lies) -> str | None:
        return None if self.codes is None else "rows"


@dataclass(frozen=True, eq=False)
class Given(OfOne):
    """A float tensor of the caller's, read where it lies."""

    def by_sample(self, samples: Samples) -> bool:
        return True

    def place(self, sizes: Sizes) -> Place:
        strides = tuple(4 * stride for stride in sizes.strides[self.x])
        return Place(sizes.shape(self.x), strides, 0, of_caller(sizes.network.io[self.x]), 4)


@dataclass(frozen=True, eq=False)
class HandOut(OfOne):
    """Floats in a tensor of the caller's: a copy where they have not been made there."""

    def by_sample(self, samples: Samples) -> bool:
        return True

    def place(self, sizes: Sizes) -> Place:
        target = sizes.callers(self.out)
        if sizes.place(self.x) != target:
            sizes.copies[self.out] = target
        return target

    def bind(self, sizes: Sizes) -> Bound:
        return copied(self, sizes)

    def code(self, to: LayerCode) -> None:
        to.copy()

    def text(self) -> str:
        return f"hand out {self.x}"


def operand(fields: Call, name: str, codes: Codes | None) -> None:
    """A qc_operand: its pixels, the step between its elements, and what its codes mean."""
    fields.pixels(f"{name}.t")
    fields.step(f"{name}.step")
    if codes is not None:
        fields.plain(**{f"{name}.codes": 1})
        fields.reals(**{f"{name}.scale": codes.scale})
        fields.numbers(**{f"{name}.zero": codes.zero})


def result(fields: Call, name: str, codes: Codes | None) -> None:
    """A qc_result."""
    fields.pixels(f"{name}.t")
    if codes is not None:
        fields.plain(**{f"{name}.codes": 1})
        fields.inverse(f"{name}.inverse", codes.scale)
        fields.numbers(**{f"{name}.zero": codes.zero, f"{name}.lo": codes.low, f"{name}.hi": codes.high})


def width(codes: Codes | None) -> int:
    """Bytes of an element."""
    return 4 if codes is None else 1


def order_of(place: Place) -> Axes:
    """The order in which a value lies that is made from another: as that, unless it is spread over a dimension."""
    spread = any(stride == 0 and n > 1 for stride, n in zip(place.strides, place.shape, strict=True))
    return tuple(range(len(place.shape))) if spread else place.order


def order_with_last(place: Place, last: int) -> Axes:
    """The order in which a value lies, with dimension `last` as the fastest."""
    return (*(d for d in order_of(place) if d != last), last)


def joint(y: Place, operands: Sequence[Place], order: Axes | None = None) -> tuple[list[Pixels], list[int]]:
    """y and operands of its shape as pixels over the same five axes, and the operands' steps between elements.

    `order`: the dimensions, slowest first, by default as they lie in y; the elements along the last of them are a pixel's, and its length
    may be another one in each operand. The others are merged where there are more than four. Raises ValueError where too many are left,
    or a pixel of y is not in one piece.
    """
    order, places = y.order if order is None else order, (y, *operands)
    if not order:
        return [Pixels(p, (1, 1, 1, 1, 1), (0, 0, 0, 0)) for p in places], [0] * len(operands)
    fast = order[-1]
    if y.strides[fast] != y.size and y.shape[fast] > 1:
        raise ValueError("elements do not lie side by side")
    axes = [(y.shape[d], tuple(p.strides[d] for p in places)) for d in order[:-1]]
    if len(axes) > 4:
        axes = merged(tuple(n for n, _ in axes), [tuple(s[i] for _, s in axes) for i in range(len(places))])
    return as_pixels(places, axes, fast), [_step(p, fast) for p in operands]


def as_pixels(places: Sequence[Place], axes: list[tuple[int, Axes]], fast: int) -> list[Pixels]:
    """Values over the same outer axes (length, stride of each); dimension `fast` is that of a pixel's elements."""
    if len(axes) > 4:
        raise ValueError("operands in more than four dimensions")
    axes = [(1, (0,) * len(places))] * (4 - len(axes)) + axes
    sizes, strides = [n for n, _ in axes], [[s[i] for _, s in axes] for i in range(len(places))]
    return [Pixels(p, (*sizes, p.shape[fast]), tuple(s)) for p, s in zip(places, strides, strict=True)]  # type: ignore[arg-type]


def _step(place: Place, dim: int) -> int:
    if place.strides[dim] >= FAR:
        raise ValueError("elements too far from each other")
    return place.strides[dim]
