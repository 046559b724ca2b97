"""Sums, products and functions of single codes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qcompiler.backends.native.emit.layer_code import LayerCode
from qcompiler.backends.native.plan.codes import Bounds, Codes, sum_factors
from qcompiler.backends.native.plan.layer import Bound, Lies, OfOne, OfTwo, Pixels, five, in_common
from qcompiler.backends.native.plan.place import Place
from qcompiler.backends.native.plan.planning import Facts, Planning, spread_fault
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.steps import Step, is_tensor, is_value
from qcompiler.ops.table import OPS


@dataclass(frozen=True, eq=False)
class Pair(OfTwo):
    """a * times[0] + b * times[1], or a * b, either spread over the other."""

    a_codes: Codes
    b_codes: Codes
    codes: Codes
    bounds: Bounds = None
    times: tuple[float, float] = (1.0, 1.0)

    @property
    def steps_through(self) -> bool:
        return True

    def lies(self, known: Lies) -> str | None:
        return in_common(self.reads, known)

    def place(self, sizes: Sizes) -> Place:
        fullest, rank = self.fullest(sizes), len(sizes.shape(self.out))
        return sizes.new(self.out, fullest.order if fullest is not None else tuple(range(rank)))

    def bind(self, sizes: Sizes) -> Bound:
        y = sizes.place(self.out)
        a, b = (sizes.place(name).spread(y.shape) for name in self.reads)
        return Bound(aligned(y, [a, b]), spread=[int(_fastest(b, y) != 0)])

    def code(self, to: LayerCode) -> None:
        low, high = self.codes.limits(self.bounds)
        with to.call(self.op) as fields:
            fields.pixels("y", "a", "b")
            fields.step("step")
            if self.op == "add":
                fields.sum("sum", sum_factors(self.a_codes, self.b_codes, self.codes, self.times), self.codes.zero, (low, high))
            else:
                fields.numbers(zero=self.codes.zero, lo=low, hi=high)
                fields.reals(k=self.a_codes.scale * self.b_codes.scale / self.codes.scale)
                fields.numbers(za=self.a_codes.zero, zb=self.b_codes.zero)
        to.halo(self.out)

    def text(self) -> str:
        return f"{self.op} {self.a}, {self.b}"


@dataclass(frozen=True, eq=False)
class Map(OfOne):
    """A function of single codes as a table of 256, or one for each channel (C, 256); without one a copy."""

    table: Tensor | None
    name: str

    @property
    def steps_through(self) -> bool:
        return True

    def lies(self, known: Lies) -> str | None:
        return in_common(self.reads, known)

    def by_sample(self, samples: Samples) -> bool:
        return True

    def place(self, sizes: Sizes) -> Place:
        return sizes.new(self.out, sizes.place(self.x).order)

    def bind(self, sizes: Sizes) -> Bound:
        return Bound(aligned(sizes.place(self.out), [sizes.place(self.x)]))

    def code(self, to: LayerCode) -> None:
        with to.call("map") as fields:
            fields.pixels("y", "x")
            if self.table is not None:
                fields.data("table", self.table.numpy())
                fields.plain(each=int(self.table.dim() == 2))
        to.halo(self.out)

    def text(self) -> str:
        return f"table {self.name}"


def _fastest(operand: Place, y: Place) -> int:
    """Its stride along the fastest axis of y that is longer than 1."""
    axis = next((d for d in reversed(y.order) if y.shape[d] > 1), y.order[-1] if y.order else None)
    return 1 if axis is None or y.shape[axis] == 1 else operand.strides[axis]


def aligned(y: Place, operands: list[Place]) -> list[Pixels]:
    """y and its operands, codes of its shape, as pixels over the same five axes, the fastest of y's last. Kernels step through y and the
    first operand along that one, and through a second or stay where it is."""
    places, order = (y, *operands), y.order
    last = [(1,) if i < 2 else (1, 0) for i in range(len(places))]
    axes = five(tuple(y.shape[d] for d in order), [tuple(p.strides[d] for d in order) for p in places], last)
    sizes = tuple(n for n, _ in axes)
    return [Pixels(place, sizes, tuple(s[i] for _, s in axes[:4])) for i, place in enumerate(places)]  # type: ignore[arg-type]


def refuse_pair(step: Step, facts: Facts) -> str | None:
    values = [argument for argument in step.args[:2] if is_value(argument)]
    numbers = [argument for argument in step.args[:2] if isinstance(argument, (int, float))]
    if len(values) + len(numbers) != 2 or not values or not all(map(facts.is_codes, values)):
        return "one of its operands is neither an int8 value nor a number"
    if len(values) == 2 and step.op == "div":
        return "a div of two values has no C form"
    return spread_fault(values, facts)


def plan_pair(step: Step, planner: Planning) -> None:
    """A number as an operand makes it a function of single codes. In front stands the operand that is not spread, and of two of one size
    the one that a convolution makes: it can take the other into its epilogue, and the other is brought into its order.
    """
    if not all(map(is_value, step.args[:2])):
        plan_function(step, planner)
        return
    a, b = planner.value(step.args[0]), planner.value(step.args[1])
    codes_of, times = planner.codes, (1.0, float(step.kwargs.get("alpha", 1)) * (-1 if step.op == "sub" else 1))
    op = "mul" if step.op == "mul" else "add"
    first, second = ((math.prod(planner.example.shape(name)), op == "add" and _adds(name, planner)) for name in (a, b))
    if second > first:
        a, b, times = b, a, (times[1], times[0])
    out, codes = planner.result(step)
    assert codes is not None
    b = planner.like(f"%{b}", a)
    planner.add(Pair(out, planner.label(step), op, a, b, codes_of[a], codes_of[b], codes, step.kwargs.get("bounds"), times))


def _adds(name: str, planner: Planning) -> bool:
    made = planner.made.get(name)
    return made is not None and made.can_add


def table_of(step: Step, x: Codes, y: Codes) -> Tensor:
    """The codes of f(x) for each code of x, computed by the op's own function as the QUANTIZED graph computes it."""
    kwargs: dict[str, Any] = dict(step.kwargs)
    return y.of(OPS.rows[step.op].fn(*(x.floats() if is_value(a) else a for a in step.args), **kwargs))


def refuse_function(step: Step, facts: Facts) -> str | None:
    if not is_value(step.args[0]) or any(is_value(a) or is_tensor(a) for a in (*step.args[1:], *step.kwargs.values())):
        return "its settings are computed at run time"
    return None


def plan_function(step: Step, planner: Planning) -> None:
    x = planner.value(next(argument for argument in step.args if is_value(argument)))
    out, codes = planner.result(step)
    assert codes is not None
    planner.add(Map(out, planner.label(step), x, table_of(step, planner.codes[x], codes), step.op), codes)
