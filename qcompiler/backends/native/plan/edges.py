"""Where a region begins and ends: floats of torch to codes, and codes to floats of torch."""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.backends.native.emit.layer_code import LayerCode
from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.layer import Bound, Lies, OfOne, Pixels, five
from qcompiler.backends.native.plan.place import Axes, Place, channels_last
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.sizes import Sizes


@dataclass(frozen=True, eq=False)
class Quantize(OfOne):
    """A float input of any strides as codes."""

    codes: Codes
    channels_last: bool

    def lies(self, known: Lies) -> str | None:
        return "pixels" if self.channels_last else "rows"

    def by_sample(self, samples: Samples) -> bool:
        return True

    def place(self, sizes: Sizes) -> Place:
        rank = len(sizes.shape(self.x))
        return sizes.new(self.out, channels_last(rank) if self.channels_last else tuple(range(rank)))

    def bind(self, sizes: Sizes) -> Bound:
        return _across(sizes.place(self.out), sizes.strides[self.x])

    def code(self, to: LayerCode) -> None:
        with to.call("quantize") as fields:
            fields.input("x", self.x)
            fields.pixels("y")
            fields.strides("xs")
            fields.inverse("inverse", self.codes.scale)
            fields.numbers(zero=self.codes.zero, lo=self.codes.low, hi=self.codes.high)
        to.halo(self.out)

    def text(self) -> str:
        return f"quantize {self.x}"


@dataclass(frozen=True, eq=False)
class Dequantize(OfOne):
    """Codes as floats in a new tensor of torch's."""

    codes: Codes

    def by_sample(self, samples: Samples) -> bool:
        return True

    def place(self, sizes: Sizes) -> None:
        return None

    def bind(self, sizes: Sizes) -> Bound:
        place = sizes.place(self.x)
        strides, step = [0] * len(place.shape), 1
        for dim in reversed(range(len(place.shape))):
            strides[dim], step = step, step * place.shape[dim]
        return _across(place, tuple(strides))

    def code(self, to: LayerCode) -> None:
        with to.call("dequantize") as fields:
            fields.pixels("x")
            fields.output("y", self.out)
            fields.strides("ys")
            fields.reals(scale=self.codes.scale)
            fields.numbers(zero=self.codes.zero)

    def text(self) -> str:
        return f"dequantize {self.x}"


def _across(codes: Place, floats: Axes) -> Bound:
    """Codes as pixels, and the strides of the floats, in elements, along the same five axes."""
    order = codes.order
    given = [tuple(codes.strides[d] for d in order), tuple(floats[d] for d in order)]
    axes = five(tuple(codes.shape[d] for d in order), given, [(codes.size,), None])
    sizes, places, beside = tuple(n for n, _ in axes), tuple(p for _, (p, _) in axes), tuple(f for _, (_, f) in axes)
    return Bound([Pixels(codes, sizes, places[:4])], strides=[beside])  # type: ignore[arg-type, list-item]
