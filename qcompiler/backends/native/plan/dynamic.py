"""What is quantized on its own range at each call: values, and linears of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from qcompiler.backends.native.emit.layer_code import Call, LayerCode
from qcompiler.backends.native.packing import RowSums, padded
from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.conv import Conv
from qcompiler.backends.native.plan.float_pointwise import FloatMap, clamped
from qcompiler.backends.native.plan.floats import joint, operand
from qcompiler.backends.native.plan.layer import Bound, Layer, Lies, OfOne, Pixels, rows
from qcompiler.backends.native.plan.place import Axes, Place, dense
from qcompiler.backends.native.plan.planning import NOT_INT8, Facts, Planning
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.plan.window import Window
from qcompiler.backends.native.steps import Step

DOUBLES = "const double *"
Starts = tuple[tuple[int, int, int, int, int], tuple[int, int, int, int]]
START: Starts = ((1, 1, 1, 1, 1), (0, 0, 0, 0))  # of a value that a kernel knows the sizes of
ANY = Codes(1.0, 0, 0, 255)  # codes whose meaning is known at run time alone


@dataclass(frozen=True, eq=False)
class Range(OfOne):
    """Step and zero point of all elements of x, two doubles."""

    x_codes: Codes | None

    @property
    def lies_anywhere(self) -> bool:
        return False

    def shape(self, sizes: Sizes) -> Axes:
        return (2,)

    def place(self, sizes: Sizes) -> Place:
        return sizes.buffer((2,), (0,), 8)

    def bind(self, sizes: Sizes) -> Bound:
        x = sizes.place(self.x)
        (pixels,), steps = as_operand(x)
        return Bound([Pixels(sizes.place(self.out), *START), pixels], spread=steps)

    def cost(self, sizes: Sizes) -> int:
        return math.prod(sizes.shape(self.x)) // 8

    def code(self, to: LayerCode) -> None:
        with to.call("range") as fields:
            fields.doubles_at("y")
            operand(fields, "x", self.x_codes)

    def text(self) -> str:
        return f"range of {self.x}"


def as_operand(x: Place) -> tuple[list[Pixels], list[int]]:
    """A value alone as pixels of an operand, and the step between their elements."""
    order = tuple(range(len(x.shape)))
    pixels, steps = joint(Place(x.shape, dense(x.shape, order)[0], 0, 0, 1), [x], order)
    return pixels[1:], steps


@dataclass(frozen=True, eq=False)
class Encode(Layer):
    """Codes of x on the range `ends`."""

    x: str
    ends: str
    x_codes: Codes | None

    @property
    def reads(self) -> tuple[str, ...]:
        return self.x, self.ends

    def lies(self, known: Lies) -> str | None:
        return "rows"

    def shape(self, sizes: Sizes) -> Axes:
        return sizes.shape(self.x)

    def place(self, sizes: Sizes) -> Place:
        return sizes.new(self.out, tuple(range(len(sizes.shape(self.out)))))

    def bind(self, sizes: Sizes) -> Bound:
        y = sizes.place(self.out)
        pixels, steps = joint(y, [sizes.place(self.x)], tuple(range(len(y.shape))))
        return Bound([*pixels, Pixels(sizes.place(self.ends), *START)], spread=steps)

    def code(self, to: LayerCode) -> None:
        with to.call("encode") as fields:
            fields.pixels("y")
            operand(fields, "x", self.x_codes)
            fields.doubles_at("ends")

    def text(self) -> str:
        return f"codes of {self.x} on its range"


@dataclass(frozen=True, eq=False)
class Factors(Layer):
    """What the epilogue of a linear takes for codes on the range `ends`."""

    ends: str
    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    @property
    def lies_anywhere(self) -> bool:
        return False

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.ends,)

    def shape(self, sizes: Sizes) -> Axes:
        return (2, padded(self.weight.shape[0]))

    def place(self, sizes: Sizes) -> Place:
        return sizes.buffer(sizes.shape(self.out), (0, 1), 4)

    def bind(self, sizes: Sizes) -> Bound:
        return Bound([Pixels(sizes.place(name), *START) for name in (self.ends, self.out)])

    def code(self, to: LayerCode) -> None:
        with to.call("factors") as fields:
            fields.doubles_at("ends")
            fields.floats("m")
            _constants(fields, self.weight, self.scale, self.bias)
            fields.data("wsum", RowSums.of(self.weight.numpy()).padded)
            fields.plain(channels=self.weight.shape[0], padded=padded(self.weight.shape[0]))

    def text(self) -> str:
        return "factors"


def _constants(fields: Call, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
    fields.data("scale", scale.double().expand(weight.shape[0]).contiguous().numpy(), DOUBLES)
    if bias is not None:
        fields.data("bias", bias.double().numpy(), DOUBLES)


@dataclass(frozen=True, eq=False)
class DynamicLinear(Conv):
    """A linear of codes on a range of their own, as floats."""

    factors: str = ""

    @property
    def reads(self) -> tuple[str, ...]:
        return self.x, self.factors

    def by_sample(self, samples: Samples) -> bool:
        return False

    def bind(self, sizes: Sizes) -> Bound:
        pixels = rows(sizes.place(self.x), sizes.place(self.out))
        return Bound([*pixels, Pixels(sizes.place(self.factors), *START)])

    def _epilogue(self, fields: Call, sums: RowSums) -> None:
        fields.floats("e.m")
        fields.set("e.b", f"a.e.m + {padded(self.channels)}")

    def text(self) -> str:
        return f"dynamic {super().text()}"


def encoded(x: str, name: str, planner: Planning) -> str:
    """The codes of a value on its own range, named `name`; the range is `name`.ends."""
    given = planner.codes.get(x)
    ends = planner.add(Range(f"{name}.ends", name, x, given))
    return planner.add(Encode(name, name, x, ends, given))


def plan_dynamic(step: Step, planner: Planning) -> None:
    planner.ranges[step.out] = f"{encoded(planner.operand(step.args[0]), step.out, planner)}.ends"


def linear_of(x: str, weight: tuple[Tensor, Tensor], bias: Tensor | None, out: str, planner: Planning) -> str:
    """x times a weight (int8, scales) plus bias, as floats; x was made by `encoded`."""
    factors = planner.add(Factors(f"{out}.factors", out, f"{x}.ends", *weight, bias))
    return planner.add(DynamicLinear(out, out, x, 0, Window((1, 1, 1)), 1, *weight, bias, ANY, None, factors=factors))


def refuse_dynamic_linear(step: Step, facts: Facts) -> str | None:
    return facts.weight_fault(step.args[1]) if facts.is_dynamic(step.args[0]) else NOT_INT8


def plan_dynamic_linear(step: Step, planner: Planning) -> None:
    (out, codes), bounds = planner.result(step), step.kwargs.get("bounds")
    bias = planner.tensor(step.args[2]) if len(step.args) > 2 and step.args[2] is not None else None
    last = codes is None and bounds is None
    made = linear_of(planner.value(step.args[0]), planner.weight(step.args[1]), bias, out if last else f"{out}.floats", planner)
    if bounds is not None:
        made = planner.add(clamped(out if codes is None else f"{out}.bounded", out, made, bounds))
    if codes is not None:
        planner.add(FloatMap(out, out, made, "QC_COPY", (), None, codes))
