"""What computes along one dimension and makes as many elements: softmax, cumulative sums, norms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.native.emit.layer_code import LayerCode
from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.float_pointwise import FloatMap, FloatPair, clamped
from qcompiler.backends.native.plan.floats import FLOATS, joint, operand, order_with_last, result, width
from qcompiler.backends.native.plan.layer import Bound, OfOne
from qcompiler.backends.native.plan.place import Axes, Place
from qcompiler.backends.native.plan.planning import Facts, Planning, refuse_rows
from qcompiler.backends.native.plan.reduce import plan_reduce
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.shape import Number, Reshape, View
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.steps import Step, is_tensor


@dataclass(frozen=True, eq=False)
class Rows(OfOne):
    """A function of the elements along dimension `dim`, counted from the end, that makes as many."""

    dim: int
    x_codes: Codes | None
    codes: Codes | None

    @property
    def steps_through(self) -> bool:
        return True

    @property
    def lies_anywhere(self) -> bool:
        return False

    def by_sample(self, samples: Samples) -> bool:
        return samples.rank(self.x) > -self.dim

    def place(self, sizes: Sizes) -> Place:
        place = sizes.place(self.x)
        return sizes.new(self.out, order_with_last(place, self.dim % len(place.shape)), width(self.codes))

    def bind(self, sizes: Sizes) -> Bound:
        y = sizes.place(self.out)
        pixels, steps = joint(y, [sizes.place(self.x)], order_with_last(y, self.dim % len(y.shape)))
        return Bound(pixels, spread=steps)

    def cost(self, sizes: Sizes) -> int:
        return 2 * math.prod(sizes.shape(self.out))


@dataclass(frozen=True, eq=False)
class Softmax(Rows):
    log: bool = False

    def code(self, to: LayerCode) -> None:
        with to.call("softmax") as fields:
            result(fields, "y", self.codes)
            operand(fields, "x", self.x_codes)
            fields.plain(log=int(self.log))

    def text(self) -> str:
        return f"{'log ' if self.log else ''}softmax {self.x} along {self.dim}"


@dataclass(frozen=True, eq=False)
class CumSum(Rows):
    def code(self, to: LayerCode) -> None:
        with to.call("cumsum") as fields:
            result(fields, "y", self.codes)
            operand(fields, "x", self.x_codes)

    def text(self) -> str:
        return f"cumsum {self.x} along {self.dim}"


@dataclass(frozen=True, eq=False)
class Norm(Rows):
    """Rows minus their mean (rms: nothing), over their deviation, times `weight`, plus `bias`.

    Row r of `cycle` uses weights r * length / each ..., each for `each` elements. weight and bias: as many as there are, or None.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5
    rms: bool = False
    channels: int = 0  # 0: a weight for each element of a row; else for each of so many parts of `groups` rows
    groups: int = 1

    def shape(self, sizes: Sizes) -> Axes:
        shape, given = sizes.shape(self.x), next((w for w in (self.weight, self.bias) if w is not None), None)
        wanted = self.channels or shape[-1]
        if given is not None and given.numel() != wanted:
            raise ValueError(f"{given.numel()} weights for {wanted} elements")
        return shape

    def place(self, sizes: Sizes) -> Place:
        return sizes.new(self.out, tuple(range(len(sizes.shape(self.x)))), width(self.codes)) if self.channels else super().place(sizes)

    def bind(self, sizes: Sizes) -> Bound:
        if not self.channels:
            return super().bind(sizes)
        y = sizes.place(self.out)
        pixels, steps = joint(y, [sizes.place(self.x)], tuple(range(len(y.shape))))
        return Bound(pixels, spread=steps)

    def code(self, to: LayerCode) -> None:
        with to.call("norm") as fields:
            result(fields, "y", self.codes)
            operand(fields, "x", self.x_codes)
            for name, values in (("w", self.weight), ("b", self.bias)):
                if values is not None:
                    fields.data(name, values.numpy(), FLOATS)
            fields.reals(eps=self.eps)
            fields.plain(rms=int(self.rms), cycle=self.groups)
            fields.set("each", f"(int64_t)a.x.t.c * {self.groups} / {self.channels}" if self.channels else "1")

    def text(self) -> str:
        kind = "rms_norm" if self.rms else "norm"
        return f"{kind} {self.x}" + (f" in {self.groups} groups" if self.channels else "")


def refuse_along(step: Step, facts: Facts) -> str | None:
    if type(step.kwargs.get("dim")) is not int or facts.rank(step.args[0]) == 0:
        return "its dimension is not known"
    if step.kwargs.get("dtype") is not None:
        return "it computes in another dtype"
    return refuse_rows(step, facts)


def plan_along(kind: Callable[..., Rows], step: Step, planner: Planning) -> None:
    """A function of the elements along the dimension that the step names."""
    x = planner.operand(step.args[0])
    out, codes = planner.result(step)
    dim, rank = step.kwargs["dim"], planner.rank(x)
    planner.add(kind(out, planner.label(step), x, dim - rank if dim >= 0 else dim, planner.codes.get(x), codes))


def refuse_normalize(step: Step, facts: Facts) -> str | None:
    kwargs = step.kwargs
    if type(kwargs.get("dim", 1)) is not int or facts.rank(step.args[0]) == 0:
        return "its dimension is not known"
    plain = kwargs.get("p", 2.0) == 2.0 and isinstance(kwargs.get("eps", 1e-12), (int, float)) and kwargs.get("out") is None
    return refuse_rows(step, facts) if plain else "only rows of length 1 by their squares have a C form"


def plan_normalize(step: Step, planner: Planning) -> None:
    """x over its length along a dimension: the root of the sum of squares, at least eps."""
    x, label, name, dim = planner.operand(step.args[0]), planner.label(step), step.out, step.kwargs.get("dim", 1)
    (out, codes), given = planner.result(step), planner.codes.get(x)
    if given is not None:
        x = planner.add(FloatMap(f"{name}.given", label, x, "QC_COPY", (), given))
    squares = planner.add(FloatMap(f"{name}.squares", label, x, "QC_SQUARE"))
    plan_reduce(Step(f"{name}.sum", "sum", (f"%{squares}",), {"dim": dim, "keepdim": True}), planner)
    root = planner.add(FloatMap(f"{name}.root", label, f"{name}.sum", "QC_SQRT"))
    length = planner.add(clamped(f"{name}.length", label, root, (float(step.kwargs.get("eps", 1e-12)), None)))
    planner.add(FloatPair(out, label, "div", x, length, (None, None), codes))


def refuse_norm(step: Step, facts: Facts) -> str | None:
    if not all(argument is None or is_tensor(argument) for argument in step.args[1:]):
        return "its weights are computed at run time"
    return refuse_rows(step, facts)


def _weights(step: Step, planner: Planning, count: int) -> list[Tensor | None]:
    given = [*step.args[1:], None, None][:count]
    return [None if a is None else planner.tensor(a).float().reshape(-1) for a in given]


def plan_layer_norm(step: Step, planner: Planning) -> None:
    """Several dimensions at the end become one, and are taken apart again."""
    x, many = planner.operand(step.args[0]), len(tuple(step.kwargs["normalized_shape"]))
    rms, label = step.op == "rms_norm", planner.label(step)
    weight, bias = (*_weights(step, planner, 1 if rms else 2), None)[:2]
    eps = step.kwargs.get("eps", None if rms else 1e-5)
    eps = torch.finfo(torch.float32).eps if eps is None else float(eps)
    out, codes = planner.result(step)
    if many == 1:
        planner.add(Norm(out, label, x, -1, planner.codes.get(x), codes, weight, bias, eps, rms))
        return
    flat = planner.add(Reshape(f"{out}.flat", label, x, "flatten", (), {"start_dim": -many}), planner.codes.get(x))
    made = planner.add(Norm(f"{out}.rows", label, flat, -1, planner.codes.get(x), codes, weight, bias, eps, rms))
    sizes = tuple(step.kwargs["normalized_shape"])
    planner.add(View(out, label, made, "unflatten", (), {"dim": -1, "sizes": sizes}), codes)


def refuse_group_norm(step: Step, facts: Facts) -> str | None:
    return refuse_norm(step, facts) if facts.rank(step.args[0]) >= 3 else f"its input has {facts.rank(step.args[0])} dimensions"


def plan_group_norm(step: Step, planner: Planning) -> None:
    """(N, C, *space) as N * groups rows of C / groups channels; instance_norm has as many groups as channels."""
    x, label = planner.operand(step.args[0]), planner.label(step)
    shape = planner.example.shape(x)
    groups = int(step.kwargs.get("num_groups", 1)) if step.op == "group_norm" else shape[1]
    weight, bias = _weights(step, planner, 2)
    out, codes = planner.result(step)
    x_codes, eps = planner.codes.get(x), float(step.kwargs.get("eps", 1e-5))
    parted = planner.add(View(f"{out}.parted", label, x, "unflatten", (), {"dim": 1, "sizes": (groups, shape[1] // groups)}), x_codes)
    flat = planner.add(Reshape(f"{out}.flat", label, parted, "flatten", (), {"start_dim": 2}), x_codes)
    made = planner.add(Norm(f"{out}.rows", label, flat, -1, x_codes, codes, weight, bias, eps, False, shape[1], groups))
    space = tuple(planner.add(Number(f"{out}.size.{i}", label, "size", (f"%{x}", i))) for i in range(2, len(shape)))
    sizes: dict[str, Any] = {"dim": 2, "sizes": (shape[1] // groups, *(f"%{name}" for name in space))}
    split = planner.add(View(f"{out}.split", label, made, "unflatten", (), sizes), codes)
    planner.add(View(out, label, split, "flatten", (), {"start_dim": 1, "end_dim": 2}), codes)
