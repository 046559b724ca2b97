"""Sums, means, largest and smallest elements along dimensions, which go."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from qcompiler.backends.native.emit.layer_code import LayerCode
from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.floats import joint, operand, order_of, order_with_last, result, width
from qcompiler.backends.native.plan.layer import Bound, OfOne
from qcompiler.backends.native.plan.place import Axes, Place
from qcompiler.backends.native.plan.planning import Facts, Planning, refuse_rows
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.shape import Reshape, View
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.steps import Step


@dataclass(frozen=True, eq=False)
class Reduce(OfOne):
    """The sum, mean, largest or smallest along the last dimension, which goes. `less`: a mean is divided by so many less."""

    op: str
    x_codes: Codes | None
    codes: Codes | None
    less: int = 0

    @property
    def steps_through(self) -> bool:
        return True

    @property
    def lies_anywhere(self) -> bool:
        return False

    def by_sample(self, samples: Samples) -> bool:
        return samples.rank(self.x) > 1

    def shape(self, sizes: Sizes) -> Axes:
        return sizes.shape(self.x)[:-1]

    def place(self, sizes: Sizes) -> Place:
        order = tuple(d for d in order_of(sizes.place(self.x)) if d != len(sizes.shape(self.x)) - 1)
        return sizes.new(self.out, order, width(self.codes))

    def bind(self, sizes: Sizes) -> Bound:
        y = sizes.place(self.out)
        wide = y.viewed(y.meta()[..., None])
        pixels, steps = joint(wide, [sizes.place(self.x)], order_with_last(wide, len(wide.shape) - 1))
        return Bound(pixels, spread=steps)

    def cost(self, sizes: Sizes) -> int:
        return math.prod(sizes.shape(self.x)) // (4 if self.x_codes is None else 16)

    def code(self, to: LayerCode) -> None:
        name = {"amax": "QC_LARGEST", "amin": "QC_SMALLEST"}.get(self.op, "QC_SUM")
        count = f"(a.x.t.c - {self.less})" if self.less else "a.x.t.c"
        with to.call("reduce") as fields:
            result(fields, "y", self.codes)
            operand(fields, "x", self.x_codes)
            fields.set("op", name)
            fields.set("factor", f"1.0f / (float){count}" if self.op == "mean" else "1.0f")

    def text(self) -> str:
        return f"{self.op} {self.x}"


def plan_float_average(dims: int, step: Step, planner: Planning) -> None:
    """An adaptive average pool of size 1 is a mean over space."""
    plan_reduce(replace(step, op="mean", kwargs={"dim": tuple(range(-dims, 0)), "keepdim": True}), planner)


def refuse_reduce(step: Step, facts: Facts) -> str | None:
    dims = step.kwargs.get("dim")
    known = dims is None or all(type(d) is int for d in (dims if isinstance(dims, (tuple, list)) else (dims,)))
    if not known or facts.rank(step.args[0]) == 0:
        return "its dimensions are not known"
    return refuse_rows(step, facts)


def plan_reduce(step: Step, planner: Planning) -> None:
    reduced(Reduce, step, planner)


def reduced(kind: Callable[..., Reduce], step: Step, planner: Planning) -> None:
    """The dimensions that go are moved behind the others and become one."""
    x, label = planner.operand(step.args[0]), planner.label(step)
    rank, dims = planner.rank(x), step.kwargs.get("dim")
    given = () if dims is None else tuple(dims) if isinstance(dims, (tuple, list)) else (dims,)
    gone = tuple(sorted(d % rank for d in given)) or tuple(range(rank))
    out, codes = planner.result(step)
    x_codes, kept = planner.codes.get(x), tuple(d for d in range(rank) if d not in gone)
    moved = planner.add(View(f"{out}.moved", label, x, "permute", (), {"dims": (*kept, *gone)}), x_codes)
    flat = planner.add(Reshape(f"{out}.flat", label, moved, "flatten", (), {"start_dim": len(kept)}), x_codes)
    keep = bool(step.kwargs.get("keepdim", False))
    made = planner.add(kind(f"{out}.short" if keep else out, label, flat, step.op, x_codes, codes))
    for d in gone if keep else ():
        last = d == gone[-1]
        made = planner.add(View(out if last else f"{out}.kept.{d}", label, made, "unsqueeze", (), {"dim": d}), codes)
