"""Pools and means: the largest code, or the rounded mean, of windows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.conv import Window
from qcompiler.backends.native.plan.layer import Bound, Layer, image
from qcompiler.backends.native.plan.place import Axes, Place, channels_last

if TYPE_CHECKING:
    from qcompiler.backends.native.emit.layer_code import LayerCode
    from qcompiler.backends.native.plan.planner import Facts, Planner
    from qcompiler.backends.native.plan.sizes import Sizes
    from qcompiler.backends.native.steps import Step


@dataclass(frozen=True, eq=False)
class Pool(Layer):
    """`kind`: max or avg. `size`: the result's size of an adaptive pool (None keeps the input's), else None and `window` counts."""

    x: str
    kind: str
    dims: int
    window: Window
    size: tuple[int | None, ...] | None
    x_codes: Codes
    codes: Codes
    ceil: bool = False
    include_pad: bool = True
    divisor: int = 0
    squeeze: bool = False  # a mean that drops the dimensions of space

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.x,)

    def _result(self, shape: Axes) -> Axes:
        """The shape with the dimensions of space."""
        space = shape[-self.dims :]
        if self.size is not None:
            return (*shape[: -self.dims], *(n if new is None else new for n, new in zip(space, self.size, strict=True)))
        return (*shape[: -self.dims], *(self.window.result(n, 3 - self.dims + i, self.ceil) for i, n in enumerate(space)))

    def shape(self, sizes: Sizes) -> Axes:
        found = self._result(sizes.shape(self.x))
        return found[: -self.dims] if self.squeeze else found

    def place(self, sizes: Sizes) -> Place:
        rank = len(sizes.shape(self.out))
        spread = rank + (self.dims if self.squeeze else 0) == self.dims + 2
        return sizes.new(self.out, tuple(range(rank)) if self.squeeze else channels_last(rank, spread))

    def bind(self, sizes: Sizes) -> Bound:
        x, y = sizes.place(self.x), sizes.place(self.out)
        if self.kind == "avg" and math.prod(x.shape[-self.dims :]) * 255 >= 2**31:
            raise ValueError("a mean over too many values: their sum may leave 32 bits")
        if self.squeeze:
            y = y.viewed(y.meta()[(..., *(None,) * self.dims)])
        return Bound([image(x, self.dims), image(y, self.dims)])

    def code(self, to: LayerCode) -> None:
        with to.call(f"{self.kind}_pool") as fields:
            fields.pixels("x", "y")
            fields.window("k", self.window)
            fields.plain(adaptive=int(self.size is not None))
            if self.kind == "avg":
                ratio = self.x_codes.scale / self.codes.scale
                fields.doubles(ratio=ratio)
                fields.reals(b=-self.x_codes.zero * ratio)
                fields.plain(include_pad=int(self.include_pad and self.size is None), divisor=self.divisor)
                fields.numbers(x_zero=self.x_codes.zero, zero=self.codes.zero, lo=self.codes.low, hi=self.codes.high)
        to.halo(self.out)

    def text(self) -> str:
        size = f"to {self.size}" if self.size is not None else " x ".join(map(str, self.window.kernel[3 - self.dims :]))
        return f"{self.kind}_pool {size}"


def refuse_pool(dims: int, step: Step, facts: Facts) -> str | None:
    if facts.rank(step.args[0]) not in (dims + 1, dims + 2):
        return f"its input has {facts.rank(step.args[0])} dimensions"
    settings = [step.kwargs.get(name) for name in ("kernel_size", "stride", "padding", "dilation", "divisor_override", "output_size")]
    return "its settings are computed from sizes" if any(_computed(s) for s in settings) else None


def _computed(value: Any) -> bool:
    return any(isinstance(v, str) for v in (value if isinstance(value, (tuple, list)) else (value,)))


def plan_pool(kind: str, dims: int, step: Step, planner: Planner) -> None:
    kwargs, more = dict(step.kwargs), {}
    kernel = kwargs["kernel_size"]
    window = Window.of(dims, kernel, kwargs.get("stride") or kernel, kwargs.get("padding", 0), kwargs.get("dilation", 1))
    if kind == "avg":
        more = {"include_pad": bool(kwargs.get("count_include_pad", True)), "divisor": int(kwargs.get("divisor_override") or 0)}
    _add(step, planner, kind, dims, window, None, ceil=bool(kwargs.get("ceil_mode", False)), **more)


def plan_adaptive(kind: str, dims: int, step: Step, planner: Planner) -> None:
    given = step.kwargs["output_size"]
    size = tuple(given) if isinstance(given, (tuple, list)) else (given,) * dims
    _add(step, planner, kind, dims, Window((1, 1, 1)), size * dims if len(size) == 1 else size)


def _space(step: Step, rank: int) -> tuple[int, ...] | None:
    dim = step.kwargs.get("dim")
    return None if dim is None else tuple(sorted(d % rank for d in (dim if isinstance(dim, (tuple, list)) else (dim,))))


def refuse_mean(step: Step, facts: Facts) -> str | None:
    """A mean over all dimensions of space of an image is a pool."""
    rank = facts.rank(step.args[0])
    dims = _space(step, rank)
    spatial = dims is not None and len(dims) in (1, 2, 3) and rank == len(dims) + 2 and dims == tuple(range(2, rank))
    return None if spatial else "a mean over other dimensions than those of space has no C form"


def plan_mean(step: Step, planner: Planner) -> None:
    dims = planner.rank(planner.value(step.args[0])) - 2
    _add(step, planner, "avg", dims, Window((1, 1, 1)), (1,) * dims, squeeze=not step.kwargs.get("keepdim", False))


def _add(step: Step, planner: Planner, kind: str, dims: int, window: Window, size: Any, **more: Any) -> None:
    x = planner.pixels(step.args[0], (), dims)
    out, codes = planner.result(step)
    assert codes is not None
    planner.add(Pool(out, planner.label(step), x, kind, dims, window, size, planner.codes[x], codes, **more))
