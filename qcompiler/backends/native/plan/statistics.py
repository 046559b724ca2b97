"""Lengths, variances and deviations along dimensions, put together from means, squares and roots."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from qcompiler.backends.native.plan.float_pointwise import FloatMap, FloatPair
from qcompiler.backends.native.plan.planning import Facts, Planning
from qcompiler.backends.native.plan.reduce import Reduce, plan_reduce, reduced, refuse_reduce
from qcompiler.backends.native.steps import Step

SQUARES = (2, None, "fro")  # lengths by the sum of squares: what p, or ord, may be


def refuse_norm(step: Step, facts: Facts) -> str | None:
    if step.kwargs.get("p", step.kwargs.get("ord")) not in SQUARES:
        return "only lengths by the sum of squares have a C form"
    return refuse_reduce(_along(step), facts)


def _along(step: Step) -> Step:
    return replace(step, kwargs={"dim": step.kwargs.get("dim"), "keepdim": bool(step.kwargs.get("keepdim", False))})


def plan_norm(step: Step, planner: Planning) -> None:
    """The root of the sum of squares."""
    x, label, name = planner.operand(step.args[0]), planner.label(step), step.out
    squares = planner.add(squared(f"{name}.squares", label, x, planner))
    plan_reduce(Step(f"{name}.sum", "sum", (f"%{squares}",), _along(step).kwargs), planner)
    out, codes = planner.result(step)
    planner.add(FloatMap(out, label, f"{name}.sum", "QC_SQRT", (), None, codes))


def squared(name: str, label: str, x: str, planner: Planning) -> FloatMap:
    """The squares of a value; of codes they are a table."""
    given = planner.codes.get(x)
    if given is None:
        return FloatMap(name, label, x, "QC_SQUARE")
    return FloatMap(name, label, x, "QC_TABLE", (), given, None, given.floats().square())


def _less(step: Step) -> object:
    """How many less than there are elements the sum of squares is divided by."""
    return step.kwargs.get("correction", int(step.kwargs.get("unbiased", True) is True))


def refuse_variance(step: Step, facts: Facts) -> str | None:
    if _less(step) not in (0, 1) or type(step.kwargs.get("unbiased", True)) is not bool:
        return "only variances over all elements, or over one less, have a C form"
    return refuse_reduce(_along(step), facts)


def plan_variance(step: Step, planner: Planning) -> None:
    """The mean of the squares of what is left without the mean; a deviation is its root."""
    x, label, name, along = planner.operand(step.args[0]), planner.label(step), step.out, dict(_along(step).kwargs)
    plan_reduce(Step(f"{name}.mean", "mean", (f"%{x}",), {**along, "keepdim": True}), planner)
    apart = planner.add(FloatPair(f"{name}.apart", label, "sub", x, f"{name}.mean", (planner.codes.get(x), None)))
    squares = planner.add(squared(f"{name}.squares", label, apart, planner))
    is_root = step.op == "std"
    variance = Step(f"{name}.variance" if is_root else name, "mean", (f"%{squares}",), along)
    reduced(partial(Reduce, less=int(bool(_less(step)))), variance, planner)
    if is_root:
        out, codes = planner.result(step)
        planner.add(FloatMap(out, label, f"{name}.variance", "QC_SQRT", (), None, codes))
