"""Functions of single floats, and sums, products and quotients of two values of which one is floats."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.native.emit.layer_code import LayerCode
from qcompiler.backends.native.plan.codes import Bounds, Codes
from qcompiler.backends.native.plan.floats import FLOATS, joint, operand, order_of, result, width
from qcompiler.backends.native.plan.layer import Bound, OfOne, OfTwo
from qcompiler.backends.native.plan.place import Place
from qcompiler.backends.native.plan.planning import Argument, Facts, Planning, spread_fault
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.steps import Step, is_tensor, is_value
from qcompiler.ops.table import OPS

Setting = tuple[str, tuple[float, ...]]  # a function of float_map.h and its numbers


@dataclass(frozen=True, eq=False)
class FloatMap(OfOne):
    """y = f(x), floats or codes. `table`: the floats for the 256 codes of x, instead of a function."""

    function: str
    numbers: tuple[float, ...] = ()
    x_codes: Codes | None = None
    codes: Codes | None = None
    table: Tensor | None = None

    @property
    def steps_through(self) -> bool:
        return True

    def by_sample(self, samples: Samples) -> bool:
        return True

    def place(self, sizes: Sizes) -> Place:
        return sizes.new(self.out, order_of(sizes.place(self.x)), width(self.codes))

    def bind(self, sizes: Sizes) -> Bound:
        pixels, steps = joint(sizes.place(self.out), [sizes.place(self.x)])
        return Bound(pixels, spread=steps)

    def cost(self, sizes: Sizes) -> int:
        return math.prod(sizes.shape(self.out)) // (4 if self.function == "QC_COPY" else 1)

    def code(self, to: LayerCode) -> None:
        with to.call("float_map") as fields:
            result(fields, "y", self.codes)
            operand(fields, "x", self.x_codes)
            fields.set("function", self.function)
            if self.table is not None:
                fields.data("table", self.table.numpy(), FLOATS)
            fields.reals(**{f"p[{index}]": number for index, number in enumerate(self.numbers)})
        to.halo(self.out)

    def text(self) -> str:
        return f"{'floats of' if self.codes is None else 'codes of'} {self.function.removeprefix('QC_').lower()} {self.x}"


@dataclass(frozen=True, eq=False)
class FloatPair(OfTwo):
    """y = clamp(a op b), either spread over the other."""

    codes_of: tuple[Codes | None, Codes | None]
    codes: Codes | None = None
    bounds: Bounds = None
    times: float = 1.0

    @property
    def steps_through(self) -> bool:
        return True

    def place(self, sizes: Sizes) -> Place:
        fullest, rank = self.fullest(sizes), len(sizes.shape(self.out))
        return sizes.new(self.out, order_of(fullest) if fullest is not None else tuple(range(rank)), width(self.codes))

    def bind(self, sizes: Sizes) -> Bound:
        y = sizes.place(self.out)
        pixels, steps = joint(y, [sizes.place(name).spread(y.shape) for name in self.reads])
        return Bound(pixels, spread=steps)

    def cost(self, sizes: Sizes) -> int:
        return math.prod(sizes.shape(self.out)) // 4

    def code(self, to: LayerCode) -> None:
        low, high = self.bounds or (None, None)
        with to.call("float_pair") as fields:
            result(fields, "y", self.codes)
            operand(fields, "a", self.codes_of[0])
            operand(fields, "b", self.codes_of[1])
            fields.set("op", f"QC_{self.op.upper()}")
            fields.reals(times=self.times, lo=-math.inf if low is None else low, hi=math.inf if high is None else high)
        to.halo(self.out)

    def text(self) -> str:
        return f"float {self.op} {self.a}, {self.b}"


def clamped(out: str, label: str, x: str, bounds: Bounds) -> FloatMap:
    """Floats between bounds, of which either may be None."""
    low, high = bounds or (None, None)
    return FloatMap(out, label, x, "QC_CLAMP", (-math.inf if low is None else float(low), math.inf if high is None else float(high)))


def _plain(name: str) -> Callable[[Step], Setting | None]:
    return lambda step: (name, ()) if not _settings(step) else None


def _settings(step: Step) -> dict[str, Any]:
    """The settings of a function that are not None."""
    return {name: value for name, value in step.kwargs.items() if value is not None}


def _numbers(name: str, *defaults: tuple[str, float], last: tuple[float, ...] = ()) -> Callable[[Step], Setting | None]:
    """`last`: numbers behind those of the step."""

    def setting(step: Step) -> Setting | None:
        values = [*(step.kwargs.get(key, default) for key, default in defaults), *last]
        return (name, tuple(map(float, values))) if all(isinstance(v, (int, float)) for v in values) else None

    return setting


def _clamp(step: Step) -> Setting | None:
    low, high = (step.kwargs.get(name) for name in ("min", "max"))
    if not all(v is None or isinstance(v, (int, float)) for v in (low, high)):
        return None
    return "QC_CLAMP", (-math.inf if low is None else float(low), math.inf if high is None else float(high))


POWERS = {2: "QC_SQUARE", 0.5: "QC_SQRT", -0.5: "QC_RSQRT", -1: "QC_RECIPROCAL", 1: "QC_COPY"}


MOST_POWER = 8  # of a whole exponent: more products lose more than a function may


def _pow(step: Step) -> Setting | None:
    exponent = step.kwargs.get("exponent", step.args[1] if len(step.args) > 1 else None)
    if not isinstance(exponent, (int, float)):
        return None
    if exponent in POWERS:
        return POWERS[exponent], ()
    return ("QC_POWER", (float(exponent),)) if float(exponent).is_integer() and abs(exponent) <= MOST_POWER else None


FUNCTIONS: Mapping[str, Callable[[Step], Setting | None]] = {
    **{name: _plain(f"QC_{name.upper()}") for name in (
        "exp", "log", "tanh", "erf", "sigmoid", "silu", "sqrt", "rsqrt", "reciprocal", "square", "neg", "abs", "hardsigmoid", "hardswish",
        "mish", "sin", "cos", "floor", "ceil", "trunc", "frac", "sign", "expm1", "log1p", "softsign", "logsigmoid")},
    "log2": lambda step: ("QC_LOG_TO", (1 / math.log(2),)),
    "log10": lambda step: ("QC_LOG_TO", (1 / math.log(10),)),
    "round": lambda step: ("QC_ROUND", ()) if step.kwargs.get("decimals", 0) == 0 else None,
    "relu": lambda step: ("QC_CLAMP", (0.0, math.inf)),
    "clamp": _clamp,
    "pow": _pow,
    "gelu": lambda step: ("QC_GELU_TANH" if step.kwargs.get("approximate") == "tanh" else "QC_GELU", ()),
    "leaky_relu": _numbers("QC_LEAKY_RELU", ("negative_slope", 0.01)),
    "elu": _numbers("QC_ELU", ("alpha", 1.0), last=(1.0,)),
    "selu": lambda step: ("QC_ELU", (1.6732632423543772, 1.0507009873554805)),
    "softplus": _numbers("QC_SOFTPLUS", ("beta", 1.0), ("threshold", 20.0)),
}  # fmt: skip


def refuse_float_function(step: Step, facts: Facts) -> str | None:
    if not is_value(step.args[0]) or any(is_value(a) or is_tensor(a) for a in (*step.args[1:], *step.kwargs.values())):
        return "its settings are computed at run time"
    if facts.is_codes(step.args[0]):
        return None
    if not facts.is_floats(step.args[0]):
        return "its input is not float32"
    known = FUNCTIONS.get(step.op)
    return None if known is not None and known(step) is not None else f"{step.op} of floats has no C form with these settings"


def plan_float_function(step: Step, planner: Planning) -> None:
    """Of codes it is a table that torch computes."""
    x = planner.operand(step.args[0])
    x_codes, (out, codes) = planner.codes.get(x), planner.result(step)
    if x_codes is not None:
        table = OPS.rows[step.op].fn(x_codes.floats(), *step.args[1:], **step.kwargs).to(torch.float32)
        planner.add(FloatMap(out, planner.label(step), x, "QC_TABLE", (), x_codes, codes, table))
        return
    setting = FUNCTIONS[step.op](step)
    assert setting is not None
    planner.add(FloatMap(out, planner.label(step), x, *setting, None, codes))


PAIRS = ("add", "sub", "mul", "div", "maximum", "minimum")


def _is_operand(argument: Argument, facts: Facts) -> bool:
    """Whole numbers count as well: with floats torch computes as if they were some."""
    held = facts.is_codes(argument) or facts.is_floats(argument) or facts.is_mask(argument) or facts.is_whole(argument)
    return held or isinstance(argument, (int, float)) or facts.is_number(argument)


def refuse_float_pair(step: Step, facts: Facts) -> str | None:
    operands = step.args[:2]
    if len(operands) != 2 or not all(_is_operand(a, facts) for a in operands):
        return "one of its operands is neither a float32 tensor nor a number"
    if not isinstance(step.kwargs.get("alpha", 1), (int, float)):
        return "its factor is computed at run time"
    return spread_fault(operands, facts)


def plan_float_pair(step: Step, planner: Planning) -> None:
    a, b = map(planner.operand, step.args[:2])
    out, codes = planner.result(step)
    both = planner.codes.get(a), planner.codes.get(b)
    times = float(step.kwargs.get("alpha", 1))
    planner.add(FloatPair(out, planner.label(step), step.op, a, b, both, codes, step.kwargs.get("bounds"), times))


def refuse_between(step: Step, facts: Facts) -> str | None:
    given = [bound for bound in step.kwargs.values() if bound is not None]
    if not any(is_value(bound) or is_tensor(bound) for bound in given):
        return "its bounds are numbers"
    if not all(_is_operand(argument, facts) for argument in (step.args[0], *given)):
        return "one of its bounds is neither a float32 tensor nor a number"
    return spread_fault([step.args[0], *given], facts)


def plan_between(step: Step, planner: Planning) -> None:
    """A clamp whose bounds are tensors: the larger of x and one, then the smaller of that and the other."""
    x, label, (out, codes) = planner.operand(step.args[0]), planner.label(step), planner.result(step)
    bounds = [(op, step.kwargs[name]) for op, name in (("maximum", "min"), ("minimum", "max")) if step.kwargs.get(name) is not None]
    for number, (op, bound) in enumerate(bounds):
        b, last = planner.operand(bound), number == len(bounds) - 1
        both = planner.codes.get(x), planner.codes.get(b)
        x = planner.add(FloatPair(out if last else f"{step.out}.above", label, op, x, b, both, codes if last else None))
