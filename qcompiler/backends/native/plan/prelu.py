"""PReLU: a function of single codes; with a slope for each channel a table for each."""

from __future__ import annotations

import torch

from qcompiler.backends.native.plan.float_pointwise import FloatPair
from qcompiler.backends.native.plan.masks import Where
from qcompiler.backends.native.plan.on_sums import plan_on_sums
from qcompiler.backends.native.plan.planning import Facts, Planning
from qcompiler.backends.native.plan.pointwise import Map
from qcompiler.backends.native.steps import Step, is_tensor


def refuse_prelu(step: Step, facts: Facts) -> str | None:
    if not is_tensor(step.args[1]):
        return "its slopes are computed at run time"
    rank = facts.rank(step.args[0])
    return None if rank <= 5 else f"its input has {rank} dimensions"


def refuse_float_prelu(step: Step, facts: Facts) -> str | None:
    if not is_tensor(step.args[1]):
        return "its slopes are computed at run time"
    return None if facts.is_codes(step.args[0]) or facts.is_floats(step.args[0]) else "its input is not float32"


def plan_float_prelu(step: Step, planner: Planning) -> None:
    """x where it is larger than 0, else x times the slope of its channel."""
    if plan_on_sums(step, planner):
        return
    slopes, x, label = planner.tensor(step.args[1]).float().reshape(-1), planner.operand(step.args[0]), planner.label(step)
    (out, codes), of = planner.result(step), planner.codes.get(x)
    if len(slopes) > 1:
        slopes = slopes.reshape(-1, *(1,) * (planner.rank(x) - 2))
    slope, zero = planner.constant(f"{out}.slopes", slopes), planner.constant(f"{out}.zero", torch.tensor(0.0))
    product = planner.add(FloatPair(f"{out}.product", label, "mul", x, slope, (of, None)))
    above = planner.add(FloatPair(f"{out}.above", label, "gt", x, zero, (of, None)))
    planner.add(Where(out, label, above, x, product, (None, of, None), codes))


def plan_prelu(step: Step, planner: Planning) -> None:
    slopes, name = planner.tensor(step.args[1]).float().reshape(-1), planner.value(step.args[0])
    out, codes = planner.result(step)
    assert codes is not None
    rank = planner.rank(name)
    if len(slopes) > 1:
        if rank < 2 or planner.example.shape(name)[1] != len(slopes):
            raise ValueError(f"{len(slopes)} slopes for a value of shape {planner.example.shape(name)}")
        name = planner.pixels(step.args[0], (), rank - 2) if rank > 2 else planner.rows(step.args[0])
    x = planner.codes[name].floats()
    tables = codes.of(torch.where(x > 0, x, x * slopes[:, None]))
    planner.add(Map(out, planner.label(step), name, tables if len(slopes) > 1 else tables[0], "prelu"), codes)
