"""Masks: 1 where something holds, else 0. What compares values, combines masks, and takes one of two values by a mask."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qcompiler.backends.native.emit.layer_code import LayerCode
from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.float_pointwise import FloatMap, FloatPair
from qcompiler.backends.native.plan.floats import joint, operand, order_of, result, width
from qcompiler.backends.native.plan.layer import Bound, Layer
from qcompiler.backends.native.plan.place import Axes, Place, spread_shape
from qcompiler.backends.native.plan.planning import Argument, Facts, Planning, spread_fault
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.steps import Step

COMBINED = ("and", "or", "xor")
EXACT = 2**23  # whole numbers up to here compare as floats as they do by themselves


@dataclass(frozen=True, eq=False)
class Where(Layer):
    """a where the condition is not 0, else b; each spread over the result."""

    condition: str
    a: str
    b: str
    codes_of: tuple[Codes | None, Codes | None, Codes | None]
    codes: Codes | None

    @property
    def steps_through(self) -> bool:
        return True

    @property
    def by_element(self) -> bool:
        return True

    @property
    def reads(self) -> tuple[str, ...]:
        return self.condition, self.a, self.b

    def shape(self, sizes: Sizes) -> Axes:
        return spread_shape(*map(sizes.shape, self.reads))

    def by_sample(self, samples: Samples) -> bool:
        return samples.may_spread(self.reads, self.out)

    def place(self, sizes: Sizes) -> Place:
        shape = sizes.shape(self.out)
        fullest = next((p for p in map(sizes.place, (self.a, self.b)) if p.shape == shape), None)
        return sizes.new(self.out, order_of(fullest) if fullest is not None else tuple(range(len(shape))), width(self.codes))

    def bind(self, sizes: Sizes) -> Bound:
        y = sizes.place(self.out)
        pixels, steps = joint(y, [sizes.place(name).spread(y.shape) for name in self.reads])
        return Bound(pixels, spread=steps)

    def cost(self, sizes: Sizes) -> int:
        return math.prod(sizes.shape(self.out)) // 3

    def code(self, to: LayerCode) -> None:
        with to.call("where") as fields:
            result(fields, "y", self.codes)
            for name, codes in zip(("condition", "a", "b"), self.codes_of, strict=True):
                operand(fields, name, codes)
        to.halo(self.out)

    def text(self) -> str:
        return f"where {self.condition}: {self.a}, else {self.b}"


def _is_value(argument: Argument, facts: Facts) -> bool:
    return isinstance(argument, (int, float)) or facts.is_codes(argument) or facts.is_floats(argument) or facts.is_mask(argument)


def refuse_comparison(step: Step, facts: Facts) -> str | None:
    a, b = step.args
    for one, other in ((a, b), (b, a)):
        if facts.is_whole(one) and type(other) is int and abs(other) <= EXACT:
            return None
    plain = _is_value(a, facts) and _is_value(b, facts)
    return spread_fault(step.args, facts) if plain else "one of its operands is neither float32 nor a number"


def refuse_masks(step: Step, facts: Facts) -> str | None:
    return spread_fault(step.args, facts) if all(map(facts.is_mask, step.args)) else "one of its operands is no mask"


def plan_pair_of_masks(step: Step, planner: Planning) -> None:
    a, b = map(planner.operand, step.args)
    (out, codes), both = planner.result(step), (planner.codes.get(a), planner.codes.get(b))
    planner.add(FloatPair(out, planner.label(step), step.op, a, b, both, codes))


def plan_not(step: Step, planner: Planning) -> None:
    x, (out, codes) = planner.operand(step.args[0]), planner.result(step)
    planner.add(FloatMap(out, planner.label(step), x, "QC_NOT", (), planner.codes.get(x), codes))


def refuse_as_float(step: Step, facts: Facts) -> str | None:
    x = step.args[0]
    return None if facts.is_mask(x) or facts.is_whole(x) or facts.is_floats(x) or facts.is_codes(x) else "its input is of another dtype"


def plan_as_float(step: Step, planner: Planning) -> None:
    x, (out, codes) = planner.operand(step.args[0]), planner.result(step)
    planner.add(FloatMap(out, planner.label(step), x, "QC_COPY", (), planner.codes.get(x), codes))


def refuse_where(step: Step, facts: Facts) -> str | None:
    condition, *values = step.args if step.op == "where" else (step.args[1], step.args[2], step.args[0])
    if not facts.is_mask(condition):
        return "its condition is no mask"
    plain = len(values) == 2 and all(_is_value(value, facts) for value in values)
    return spread_fault((condition, *values), facts) if plain else "one of its values is neither float32 nor a number"


def plan_where(step: Step, planner: Planning) -> None:
    order = step.args if step.op == "where" else (step.args[1], step.args[2], step.args[0])
    condition, a, b = map(planner.operand, order)
    (out, codes), of = planner.result(step), planner.codes.get
    planner.add(Where(out, planner.label(step), condition, a, b, (of(condition), of(a), of(b)), codes))
