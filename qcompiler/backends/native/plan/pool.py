"""Pools and means: the largest element, or the mean, of windows of codes or of floats."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from qcompiler.backends.native.emit.layer_code import Call, LayerCode
from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.floats import operand, result, width
from qcompiler.backends.native.plan.layer import Bound, Lies, OfOne, image
from qcompiler.backends.native.plan.pick import lies_on, on_codes
from qcompiler.backends.native.plan.place import Axes, Place, channels_last
from qcompiler.backends.native.plan.planning import Facts, Planning, refuse_rows
from qcompiler.backends.native.plan.reduce import plan_float_average
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.plan.window import Window
from qcompiler.backends.native.steps import Step


@dataclass(frozen=True, eq=False)
class Pool(OfOne):
    """`kind`: max or avg. `size`: the result's size of an adaptive pool (None keeps the input's, %name is a number that sizes give), else
    None and `window` counts.

    Codes of None are floats; where one of the two is, the whole computes with floats.
    """

    kind: str
    dims: int
    window: Window
    size: tuple[int | str | None, ...] | None
    x_codes: Codes | None
    codes: Codes | None
    ceil: bool = False
    include_pad: bool = True
    divisor: int = 0
    squeeze: bool = False  # a mean that drops the dimensions of space

    def _result(self, sizes: Sizes) -> Axes:
        """The shape with the dimensions of space."""
        shape = sizes.shape(self.x)
        space = shape[-self.dims :]
        if self.size is not None:
            wanted = sizes.numbers(self.size)
            return (*shape[: -self.dims], *(n if new is None else new for n, new in zip(space, wanted, strict=True)))
        return (*shape[: -self.dims], *(self.window.result(n, 3 - self.dims + i, self.ceil) for i, n in enumerate(space)))

    def lies(self, known: Lies) -> str | None:
        return "rows" if self.squeeze else "pixels"

    def shape(self, sizes: Sizes) -> Axes:
        found = self._result(sizes)
        return found[: -self.dims] if self.squeeze else found

    def by_sample(self, samples: Samples) -> bool:
        return samples.rank(self.x) == self.dims + 2

    def place(self, sizes: Sizes) -> Place:
        rank = len(sizes.shape(self.out))
        spread = rank + (self.dims if self.squeeze else 0) == self.dims + 2
        return sizes.new(self.out, tuple(range(rank)) if self.squeeze else channels_last(rank, spread), width(self.codes))

    def bind(self, sizes: Sizes) -> Bound:
        x, y = sizes.place(self.x), sizes.place(self.out)
        if self.kind == "avg" and not self.floats and math.prod(x.shape[-self.dims :]) * 255 >= 2**31:
            raise ValueError("a mean over too many values: their sum may leave 32 bits")
        if self.squeeze:
            y = y.viewed(y.meta()[(..., *(None,) * self.dims)])
        pixels = [image(x, self.dims), image(y, self.dims)]
        return Bound(pixels[::-1], spread=[x.size]) if self.floats else Bound(pixels)

    @property
    def floats(self) -> bool:
        return self.x_codes is None or self.codes is None

    def code(self, to: LayerCode) -> None:
        with to.call("float_pool" if self.floats else f"{self.kind}_pool") as fields:
            if self.x_codes is None or self.codes is None:
                result(fields, "y", self.codes)
                operand(fields, "x", self.x_codes)
                fields.set("op", "QC_SUM" if self.kind == "avg" else "QC_LARGEST")
            else:
                fields.pixels("x", "y")
                self._ends(fields, self.x_codes, self.codes)
            fields.window("k", self.window)
            fields.plain(adaptive=int(self.size is not None))
            if self.kind == "avg":
                fields.plain(include_pad=int(self.include_pad and self.size is None), divisor=self.divisor)
        to.halo(self.out)

    def _ends(self, fields: Call, x: Codes, y: Codes) -> None:
        if self.kind == "avg":
            ratio = x.scale / y.scale
            fields.doubles(ratio=ratio)
            fields.reals(b=-x.zero * ratio)
            fields.numbers(x_zero=x.zero, zero=y.zero, lo=y.low, hi=y.high)

    def text(self) -> str:
        size = f"to {self.size}" if self.size is not None else " x ".join(map(str, self.window.kernel[3 - self.dims :]))
        return f"{self.kind}_pool {size}"


MOST_DIVISOR = 2**22  # so many codes, and those of a window, have a sum of 32 bits


def refuse_pool(dims: int, step: Step, facts: Facts) -> str | None:
    if facts.rank(step.args[0]) not in (dims + 1, dims + 2):
        return f"its input has {facts.rank(step.args[0])} dimensions"
    settings = [step.kwargs.get(name) for name in ("kernel_size", "stride", "padding", "dilation", "divisor_override")]
    wanted = [size for size in _each(step.kwargs.get("output_size")) if not facts.is_number(size)]
    if step.kwargs.get("return_indices", False):
        return "it hands out places"
    if type(divisor := step.kwargs.get("divisor_override") or 0) is int and abs(divisor) > MOST_DIVISOR:
        return f"it divides its sums by {divisor}"
    if any(map(_computed, [*settings, wanted])):
        return "its settings are computed from sizes"
    return refuse_rows(replace(step, kwargs={}), facts)


def _each(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _computed(value: object) -> bool:
    return any(isinstance(v, str) for v in _each(value))


def plan_pool(kind: str, dims: int, step: Step, planner: Planning) -> None:
    kwargs, more = dict(step.kwargs), {}
    kernel = kwargs["kernel_size"]
    window = Window.of(dims, kernel, kwargs.get("stride") or kernel, kwargs.get("padding", 0), kwargs.get("dilation", 1))
    if kind == "avg":
        more = {"include_pad": bool(kwargs.get("count_include_pad", True)), "divisor": int(kwargs.get("divisor_override") or 0)}
    _add(step, planner, dims, kind=kind, window=window, size=None, ceil=bool(kwargs.get("ceil_mode", False)), **more)


def plan_adaptive(kind: str, dims: int, step: Step, planner: Planning) -> None:
    given = step.kwargs["output_size"]
    size = tuple(given) if isinstance(given, (tuple, list)) else (given,) * dims
    size = size * dims if len(size) == 1 else size
    codes = planner.result(step)[1] is not None and planner.codes.get(planner.value(step.args[0])) is not None
    if kind == "avg" and size == (1,) * dims and not codes:
        plan_float_average(dims, step, planner)
        return
    _add(step, planner, dims, kind=kind, window=Window((1, 1, 1)), size=size)


def _space(step: Step, rank: int) -> tuple[int, ...] | None:
    dim = step.kwargs.get("dim")
    return None if dim is None else tuple(sorted(d % rank for d in (dim if isinstance(dim, (tuple, list)) else (dim,))))


def refuse_mean(step: Step, facts: Facts) -> str | None:
    """A mean over all dimensions of space of an image is a pool."""
    rank = facts.rank(step.args[0])
    dims = _space(step, rank)
    spatial = dims is not None and len(dims) in (1, 2, 3) and rank == len(dims) + 2 and dims == tuple(range(2, rank))
    return None if spatial else "a mean over other dimensions than those of space has no C form"


def plan_mean(step: Step, planner: Planning) -> None:
    dims = planner.rank(planner.value(step.args[0])) - 2
    squeeze = not step.kwargs.get("keepdim", False)
    _add(step, planner, dims, kind="avg", window=Window((1, 1, 1)), size=(1,) * dims, squeeze=squeeze)


def _add(step: Step, planner: Planning, dims: int, **settings: Any) -> None:
    """`settings`: of the Pool, by the names of its fields. The largest code is one of x: it is looked for among codes of the result."""
    x = planner.operand(step.args[0])
    out, codes = planner.result(step)
    given = planner.codes.get(x)
    if settings["kind"] == "max" and codes is not None and given is not None and not lies_on(given, codes):
        x = on_codes(f"{out}.codes", step, planner, x, codes)
    x = planner.pixels(f"%{x}", (), dims)
    planner.add(Pool(out, planner.label(step), x=x, dims=dims, x_codes=planner.codes.get(x), codes=codes, **settings))
