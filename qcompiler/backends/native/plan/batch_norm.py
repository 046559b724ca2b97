"""BatchNorm that stands alone: on codes, on floats, or on the sums of the op before it."""

from __future__ import annotations

import torch

from qcompiler.backends.native.plan.bend import factor_and_bias
from qcompiler.backends.native.plan.conv import Conv
from qcompiler.backends.native.plan.float_pointwise import FloatPair
from qcompiler.backends.native.plan.on_sums import plan_on_sums
from qcompiler.backends.native.plan.planning import Facts, Planning
from qcompiler.backends.native.plan.window import Window
from qcompiler.backends.native.steps import Step, is_tensor


def refuse_batch_norm(step: Step, facts: Facts) -> str | None:
    rank = facts.rank(step.args[0])
    if step.kwargs.get("training", False):
        return "it uses the statistics of each batch"
    return None if 3 <= rank <= 5 else f"its input has {rank} dimensions"


def refuse_float_batch_norm(step: Step, facts: Facts) -> str | None:
    if not (facts.is_codes(step.args[0]) or facts.is_floats(step.args[0])):
        return "its input is not float32"
    if not all(argument is None or is_tensor(argument) for argument in step.args[1:]):
        return "its weights are computed at run time"
    return "it uses the statistics of each batch" if step.kwargs.get("training", False) else None


def plan_float_batch_norm(step: Step, planner: Planning) -> None:
    """A product and a sum by channel."""
    if plan_on_sums(step, planner):
        return
    x, label, (out, codes) = planner.operand(step.args[0]), planner.label(step), planner.result(step)
    shape = (-1, *(1,) * (planner.rank(x) - 2))
    factor, bias = (values.float().reshape(shape) for values in factor_and_bias(step, planner))
    f, b = (planner.constant(f"{out}.{name}", values) for name, values in (("factor", factor), ("bias", bias)))
    product = planner.add(FloatPair(f"{out}.product", label, "mul", x, f, (planner.codes.get(x), None)))
    planner.add(FloatPair(out, label, "add", product, b, (None, None), codes, step.kwargs.get("bounds")))


def plan_batch_norm(step: Step, planner: Planning) -> None:
    """A depthwise convolution of 1 x 1 with weights of 1."""
    factor, bias = factor_and_bias(step, planner)
    dims = planner.rank(planner.value(step.args[0])) - 2
    x = planner.pixels(step.args[0], (), dims)
    ones = torch.ones((len(factor), 1, *(1,) * dims), dtype=torch.int8)
    out, codes = planner.result(step)
    planner.add(Conv(out, planner.label(step), x, dims, Window((1, 1, 1)), len(factor), ones, factor, bias, planner.codes[x], codes,
                     step.kwargs.get("bounds")))  # fmt: skip
