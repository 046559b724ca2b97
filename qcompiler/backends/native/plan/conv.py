"""Convolutions and linears: sums of products of codes and int8 weights, with all that their epilogue does."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qcompiler.backends.native.emit.layer_code import Call, LayerCode
from qcompiler.backends.native.packing import MAX_SPANS, RowSums, fold_epilogue, pack_conv, pack_depthwise, sums_fit
from qcompiler.backends.native.plan.bend import Bend
from qcompiler.backends.native.plan.codes import Bounds, Codes, sum_factors
from qcompiler.backends.native.plan.curve import Curve
from qcompiler.backends.native.plan.float_pointwise import clamped
from qcompiler.backends.native.plan.knee import Knee
from qcompiler.backends.native.plan.layer import Bound, Layer, Lies, image, rows
from qcompiler.backends.native.plan.pick import without_pads
from qcompiler.backends.native.plan.place import Axes, Place, channels_last
from qcompiler.backends.native.plan.planning import NOT_INT8, Facts, Planning
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.plan.window import Window, three, window_fault
from qcompiler.backends.native.steps import Step


@dataclass(frozen=True)
class Residual:
    """Another value, which makes a sum with the result once that has been rounded to codes: result * times[0] + value * times[1]."""

    value: str
    codes: Codes
    low: int
    high: int
    times: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Conv(Layer):
    """A convolution in `dims` dimensions; 0: a linear. `weight` (O, I / groups, *kernel) int8, `scale` (O,) float64, `bias` (O,).

    `codes`: of the convolution's own result, None where floats are handed out. low..high: what its clamp leaves of them. `bend`: a function
    of the sums before they are rounded, which are real numbers then. `table`: 256 codes, a function of the result. `residual`, then `low`,
    `high` of the sum, as its codes `of_sum` have them.
    """

    x: str
    dims: int
    window: Window
    groups: int
    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    x_codes: Codes
    codes: Codes | None
    bounds: Bounds = None
    residual: Residual | None = None
    of_sum: Codes | None = None
    table: Tensor | None = None
    bend: Bend | Curve | Knee | None = None

    def __post_init__(self) -> None:
        channels, bias = self.weight.shape[0], self.bias
        if (
            self.weight.dim() != 2 + self.dims
            or self.groups < 1
            or channels % self.groups
            or min((*self.window.stride, *self.window.dilation)) < 1
        ):
            raise ValueError(f"no weight of {self.groups} groups in {self.dims} dimensions: {tuple(self.weight.shape)}")
        if bias is not None and bias.shape != (channels,):
            raise ValueError(f"a bias of shape {tuple(bias.shape)} for {channels} channels")
        if not sums_fit(self.weight.numpy()):
            raise ValueError("sums of products may leave 32 bits")
        if math.prod(self.window.kernel) > MAX_SPANS:
            raise ValueError(f"a window of more than {MAX_SPANS} elements")

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.x,) if self.residual is None else (self.x, self.residual.value)

    @property
    def channels(self) -> int:
        return self.weight.shape[0]

    @property
    def is_depthwise(self) -> bool:
        return self.dims > 0 and self.groups == self.weight.shape[0] > 1 and self.weight.shape[1] == 1 and self.codes is not None

    @property
    def can_add(self) -> bool:
        return self.codes is not None and (self.bend is None or isinstance(self.bend, Bend))

    def lies(self, known: Lies) -> str | None:
        return "pixels" if self.dims else "rows"

    def shape(self, sizes: Sizes) -> Axes:
        shape = sizes.shape(self.x)
        if self.dims == 0:
            if shape[-1] != self.weight.shape[1]:
                raise ValueError(f"{shape[-1]} features, not {self.weight.shape[1]}")
            return (*shape[:-1], self.channels)
        batch, space = shape[: -self.dims - 1], shape[-self.dims :]
        if shape[-self.dims - 1] != self.weight.shape[1] * self.groups:
            raise ValueError(f"{shape[-self.dims - 1]} channels, not {self.weight.shape[1] * self.groups}")
        return self._result(batch, space)

    def _result(self, batch: Axes, space: Axes) -> Axes:
        return (*batch, self.channels, *(self.window.result(n, 3 - self.dims + i) for i, n in enumerate(space)))

    def by_sample(self, samples: Samples) -> bool:
        rank = samples.rank(self.x)
        return (rank == self.dims + 2 if self.dims else rank > 1) and samples.holds(self.reads)

    def place(self, sizes: Sizes) -> Place:
        rank = len(sizes.shape(self.out))
        order = channels_last(rank, rank == self.dims + 2) if self.dims else tuple(range(rank))
        return sizes.new(self.out, order, 1 if self.codes is not None else 4)

    def cost(self, sizes: Sizes) -> int:
        products = math.prod(sizes.shape(self.out)) * self.weight[0].numel()
        return products // (30 if self.is_depthwise else 200)

    def bind(self, sizes: Sizes) -> Bound:
        places = [sizes.place(self.x), sizes.place(self.out)]
        if self.residual is not None:  # at other sizes than the example's it may be spread, as positions are over a batch
            places.append(sizes.place(self.residual.value).spread(places[1].shape))
        return Bound([image(p, self.dims) for p in places] if self.dims else rows(*places))

    def code(self, to: LayerCode) -> None:
        fold = self.window.kernel[2] > 1 and self.window.dilation[2] == 1 and to.is_whole(self.x)
        sums = RowSums.of(self.weight.numpy())
        with to.call("depthwise" if self.is_depthwise else "conv") as fields:
            fields.pixels("x", "y", *(["r"] if self.residual is not None else []))
            fields.window("k", self.window)
            self._weights(fields, fold, sums)
            self._epilogue(fields, sums)
        to.halo(self.out)

    def _weights(self, fields: Call, fold: bool, sums: RowSums) -> None:
        weight = self.weight.numpy()
        if self.is_depthwise:
            weights = pack_depthwise(weight)
        else:
            packed = pack_conv(weight, self.groups, fold)
            weights = packed.weights
            fields.plain(groups=packed.groups, fold=int(packed.fold), floats=int(self.codes is None))
            fields.numbers(small=int(sums.stay_small))
        fields.data("w", weights)
        fields.data("wsum", sums.padded)

    def _epilogue(self, fields: Call, sums: RowSums) -> None:
        y_scale, start = (1.0 if self.codes is None else self.codes.scale, 0.0) if self.bend is None else self.bend.axis
        bias = start * y_scale + (torch.zeros(self.channels) if self.bias is None else self.bias).double()
        folded = fold_epilogue(sums, self.scale.numpy(), bias.numpy(), self.x_codes.scale, self.x_codes.zero, y_scale)
        fields.data("e.m", folded.m)
        fields.data("e.b", folded.b)
        fields.numbers(**{"e.wide": int(folded.wide)})
        if self.codes is None:
            return
        low, high = self.codes.limits(self.bounds if self.residual is None else None)
        if self.bend is not None:
            self.bend.code(fields, self.codes)
        fields.numbers(**{"e.zero": self.codes.zero, "e.lo": low, "e.hi": high})
        if self.residual is not None and self.of_sum is not None:
            factors = sum_factors(self.codes, self.residual.codes, self.of_sum, self.residual.times)
            fields.sum("e.sum", factors, self.of_sum.zero, (self.residual.low, self.residual.high))
        if self.table is not None:
            fields.data("e.table", self.table.numpy())

    def text(self) -> str:
        w = self.window
        name = "linear" if not self.dims else "depthwise" if self.is_depthwise else "conv"
        size = " x ".join(map(str, w.kernel[3 - self.dims :])) if self.dims else ""
        parts = [name, size, f"{self.weight.shape[1] * self.groups} -> {self.channels}"]
        parts += [f"stride {'x'.join(map(str, w.stride[3 - self.dims :]))}"] if self.dims and set(w.stride) != {1} else []
        parts += [f"groups {self.groups}"] if self.groups > 1 and not self.is_depthwise else []
        parts += [self.bend.name] if self.bend is not None else []
        parts += [f"+ {self.residual.value}"] if self.residual else []
        return " ".join(p for p in (*parts, "table" if self.table is not None else "") if p)


def refuse_conv(step: Step, facts: Facts) -> str | None:
    if not facts.is_codes(step.args[0]):
        return NOT_INT8
    return window_fault(step.kwargs) or facts.weight_fault(step.args[1])


def plan_conv(dims: int, step: Step, planner: Planning) -> None:
    weight, scale = planner.weight(step.args[1])
    kwargs = step.kwargs
    groups = int(kwargs.get("groups", 1))
    x, window = _padded_input(dims, tuple(weight.shape[2:]), step, planner) if dims else (planner.rows(step.args[0]), Window((1, 1, 1)))
    bias = planner.tensor(step.args[2]) if len(step.args) > 2 and step.args[2] is not None else None
    (out, codes), bounds = planner.result(step), kwargs.get("bounds")
    made = out if codes is not None or bounds is None else f"{out}.unbounded"
    planner.add(Conv(made, planner.label(step), x, dims, window, groups, weight, scale, bias, planner.codes[x], codes, bounds))
    if made != out:
        planner.add(clamped(out, planner.label(step), made, bounds))


def _padded_input(dims: int, kernel: Axes, step: Step, planner: Planning) -> tuple[str, Window]:
    """What a convolution reads and its window; zeros that an op before it puts around x are padding of its own."""
    settings = (step.kwargs.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)))
    window, padded = Window.of(dims, kernel, *settings), without_pads(planner, step.args[0], dims)
    pad, after = (tuple(a + b for a, b in zip(window.pad, three(more, dims, 0), strict=True)) for more in (padded.before, padded.after))
    window = replace(window, pad=pad, after=after)  # type: ignore[arg-type]
    return planner.pixels(f"%{padded.x}", tuple(map(max, pad[3 - dims :], after[3 - dims :]))), window
