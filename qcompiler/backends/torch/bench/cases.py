"""Random and extreme inputs for every kernel, and the float64 truth they are compared with. Used by measure.py and tests."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qcompiler.ops.spec import Op, Output
from qcompiler.ops.table import OPS

SMALL: dict[int, tuple[int, ...]] = {1: (11,), 2: (9, 7), 3: (5, 6, 5)}


@dataclass(frozen=True)
class Int8:
    """A weight as stored: int8 values, scale and zero point; `axis` None is per tensor."""

    values: Tensor
    scale: Tensor
    zero_point: Tensor
    axis: int | None

    def double(self) -> Tensor:
        if self.axis is None:
            return (self.values.double() - self.zero_point.double()) * self.scale.double()
        shape = [1] * self.values.dim()
        shape[self.axis] = -1
        return (self.values.double() - self.zero_point.double().reshape(shape)) * self.scale.double().reshape(shape)


@dataclass(frozen=True)
class Case:
    """One call of an op: quint8 tensors (and lists of them) are activations, Int8 the weight, float tensors parameters."""

    op: str
    label: str
    args: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def row(self) -> Op:
        return OPS.rows[self.op]

    def truth(self) -> Tensor | tuple[Tensor, ...]:
        """The op on the real values, in float64."""
        result: Any = self.row.fn(*(real(a) for a in self.args), **self.attributes)
        return tuple(result) if isinstance(result, (list, tuple)) else result


def real(value: Any) -> Any:
    if isinstance(value, Int8):
        return value.double()
    if isinstance(value, list):
        return [real(v) for v in value]
    if isinstance(value, Tensor):
        return ((value.int_repr().double() - value.q_zero_point()) * value.q_scale()) if value.is_quantized else value.double()
    return value


def activation(shape: tuple[int, ...], high: int, extreme: bool = False, scale: float = 0.02, zero_point: int | None = None) -> Tensor:
    """quint8 with codes up to `high`; extreme: all of them `high` or 0 around zero point 0, to provoke saturation."""
    codes = torch.randint(0, high + 1, shape, dtype=torch.uint8)
    if extreme:
        codes = torch.where(torch.rand(shape) < 0.9, high, 0).to(torch.uint8)
    return torch._make_per_tensor_quantized_tensor(codes, scale, (0 if extreme else high // 2) if zero_point is None else zero_point)


def weight(shape: tuple[int, ...], axis: int | None, extreme: bool = False) -> Int8:
    values = torch.randint(-127, 128, shape, dtype=torch.int8)
    if extreme:
        values = torch.where(torch.rand(shape) < 0.5, 127, 121).to(torch.int8)
    count = 1 if axis is None else shape[axis]
    return Int8(values, torch.rand(count) * 0.004 + 0.001, torch.zeros(count, dtype=torch.int64), axis)


# (label, in, out, kernel, settings, layout)
CONVS: tuple[tuple[str, int, int, int, dict[str, Any], str], ...] = (
    ("plain", 8, 12, 3, {"padding": 1}, ""),
    ("pointwise", 16, 24, 1, {}, "channels_last"),
    ("groups", 8, 12, 3, {"groups": 4, "stride": 2, "padding": 1}, ""),
    ("depthwise", 16, 16, 3, {"groups": 16, "padding": 1}, "channels_last"),
    ("depthwise stride 2, 5 wide", 16, 16, 5, {"groups": 16, "padding": 2, "stride": 2}, ""),
    ("depthwise twice the channels", 16, 32, 3, {"groups": 16, "padding": 1}, ""),
    ("depthwise dilated", 16, 16, 3, {"groups": 16, "padding": 2, "dilation": 2}, ""),
    ("depthwise unpadded", 16, 16, 3, {"groups": 16}, ""),
    ("depthwise 12 channels", 12, 12, 3, {"groups": 12, "padding": 1}, ""),
    ("6 groups of 4, not whole vectors", 24, 24, 3, {"groups": 6, "padding": 1}, ""),
    ("5 groups of 4, a prime number", 20, 20, 3, {"groups": 5, "stride": 2, "padding": 1}, "channels_last"),
    ("12 groups of 2, not whole vectors", 24, 24, 3, {"groups": 12, "padding": 1}, ""),
    ("depthwise 116 channels", 116, 116, 3, {"groups": 116, "padding": 1}, "channels_last"),
    ("depthwise 128 channels", 128, 128, 3, {"groups": 128, "padding": 1}, "channels_last"),
    ("dilated, odd channels", 7, 5, 3, {"dilation": 2}, ""),
    ("transposed view", 6, 5, 3, {"padding": "same"}, "view"),
    ("no batch", 6, 5, 3, {"padding": 1}, "empty"),
    ("relu", 6, 8, 3, {"padding": 1, "bounds": (0.0, None)}, ""),
    ("clamp", 6, 8, 3, {"padding": 1, "bounds": (-0.5, 1.5)}, ""),
    ("unbatched", 6, 5, 3, {"padding": 1}, "unbatched"),
    ("padding mode", 6, 8, 3, {"padding": (1,), "padding_mode": "reflect"}, ""),
)
TRANSPOSES: tuple[tuple[str, int, int, int, dict[str, Any], str], ...] = (
    ("equal channels", 8, 8, 3, {}, ""),
    ("more out", 8, 12, 3, {"stride": 2, "padding": 1}, ""),
    ("more in", 12, 8, 2, {"stride": 2}, "channels_last"),
    ("one channel out", 8, 1, 2, {"stride": 2}, ""),
    ("output padding", 8, 8, 3, {"stride": 2, "padding": 1, "output_padding": 1}, ""),
    ("output padding alone", 8, 6, 2, {"stride": 2, "output_padding": 1}, ""),
    ("kernel below stride", 8, 6, 2, {"stride": 3}, ""),
    ("padding above stride", 8, 6, 5, {"stride": 2, "padding": 3}, ""),
    ("padding above kernel", 8, 6, 1, {"padding": 1}, ""),
    ("wide stride", 6, 5, 8, {"stride": 4, "padding": 2}, "channels_last"),
    ("groups", 8, 8, 3, {"groups": 2}, ""),
    ("groups, more out", 8, 16, 4, {"groups": 2, "stride": 2, "padding": 1}, ""),
    ("depthwise", 16, 16, 4, {"groups": 16, "stride": 2, "padding": 1}, "channels_last"),
    ("depthwise, stride 1", 16, 16, 3, {"groups": 16, "padding": 1}, "channels_last"),
    ("depthwise, 116 channels", 116, 116, 2, {"groups": 116, "stride": 2}, "channels_last"),
    ("dilated", 8, 8, 3, {"dilation": 2, "padding": 1, "output_padding": 1}, "view"),
    ("dilated with a stride", 8, 8, 3, {"dilation": 2, "stride": 2}, ""),
    ("no batch", 8, 8, 3, {}, "empty"),
    ("relu", 8, 8, 3, {"bounds": (0.0, None)}, ""),
    ("unbatched", 8, 8, 3, {"stride": 2}, "unbatched"),
)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values, stored otherwise."""
    if layout == "view":
        return x.transpose(1, -1).contiguous().transpose(1, -1)
    if layout == "channels_last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x


def conv_cases(high: int, extreme: bool) -> Iterator[Case]:
    for dims in (1, 2, 3):
        for transposed, rows in ((False, CONVS), (True, TRANSPOSES)):
            for label, cin, cout, k, settings, layout in rows:
                groups = settings.get("groups", 1)
                shape = (cin, cout // groups) if transposed else (cout, cin // groups)
                size = SMALL[dims] if k < 5 else tuple(s + 3 for s in SMALL[dims])
                if "padding_mode" in settings:  # the float form wants a tuple here, as modules have it
                    settings = {**settings, "padding": (1,) * dims}
                x = laid_out(activation((0 if layout == "empty" else 2, cin, *size), high, extreme), layout)
                x = x[0] if layout == "unbatched" else x
                bias = None if "odd" in label else torch.randn(cout) * 0.1
                for axis in (None, 1 if transposed else 0):
                    w = weight((*shape, *[k] * dims), axis, extreme)
                    name = f"conv_transpose{dims}d" if transposed else f"conv{dims}d"
                    kind = "per tensor" if axis is None else "per channel"
                    yield Case(name, f"{label}, {kind}", (x, w, bias), dict(settings))


def linear_cases(high: int, extreme: bool) -> Iterator[Case]:
    for axis in (None, 0):
        for label, lead in (("plain", (5,)), ("leading dimensions", (2, 3)), ("no batch", (0,)), ("one row", (1,)), ("vector", ())):
            x = activation((*lead, 37), high, extreme)
            yield Case("linear", f"{label}, {axis}", (x, weight((19, 37), axis, extreme), torch.randn(19)))
        x = activation((37, 6), high, extreme).transpose(0, 1)
        yield Case("linear", f"view, relu, {axis}", (x, weight((19, 37), axis, extreme), None), {"bounds": (0.0, None)})
    yield Case("matmul", "plain", (activation((3, 8, 20), high, extreme), activation((3, 20, 7), high, extreme, 0.01)))
    yield Case("matmul", "broadcast", (activation((2, 3, 8, 20), high), activation((20, 7), high, False, 0.01)))


# (label, layout of what is added, settings)
RESIDUALS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("plain", "", {}),
    ("relu, view", "view", {"bounds": (0.0, None)}),
    ("clamp, channels_last", "channels_last", {"bounds": (-1.0, 2.0)}),
    ("no batch", "empty", {}),
    ("unbatched, relu", "unbatched", {"bounds": (0.0, None)}),
    ("one value a channel", "spread", {}),
)


def epilogue_cases(high: int, extreme: bool) -> Iterator[Case]:
    for axis in (None, 0):
        for label, lead in (("plain", (5,)), ("leading dimensions", (2, 3)), ("no batch", (0,)), ("vector", ())):
            x, w, bias = activation((*lead, 37), high, extreme), weight((19, 37), axis, extreme), torch.randn(19)
            yield Case("linear_leaky_relu", f"{label}, {axis}", (x, w, bias), {"negative_slope": 0.1})
            yield Case("linear_tanh", f"{label}, {axis}", (x, Int8(w.values, w.scale / 20, w.zero_point, axis), bias))
        for label, layout, bounds in RESIDUALS:
            x, other = activation((2, 8, 9, 7), high, extreme), laid_out(activation((2, 12, 5, 4), high, extreme, 0.3), layout)
            other = other[:, :, :1, :1] if layout == "spread" else other
            if layout in ("unbatched", "empty"):
                x, other = (x[0], other[0]) if layout == "unbatched" else (x[:0], other[:0])
            args = (x, weight((12, 8, 3, 3), axis, extreme), torch.randn(12), other)
            yield Case("conv2d_add", f"{label}, {axis}", args, {"stride": 2, "padding": 1, **bounds})


def binary_cases(high: int, extreme: bool) -> Iterator[Case]:
    a = activation((2, 8, 6, 5), high, extreme)
    others: dict[str, Any] = {
        "plain": activation((2, 8, 6, 5), high, extreme, 0.03),
        "channels_last": laid_out(activation((2, 8, 6, 5), high, extreme, 0.03), "channels_last"),
        "per channel": activation((2, 8, 1, 1), high, extreme, 0.03),
        "row": activation((5,), high, extreme, 0.03),
        "view": laid_out(activation((2, 8, 6, 5), high, extreme, 0.03), "view"),
        "number": 0.7,
        "float tensor": torch.rand(8, 1, 1) + 0.5,
    }
    for op in ("add", "sub", "mul"):
        for label, b in others.items():
            yield Case(op, label, (a, b))
            yield Case(op, f"{label}, relu", (a, b), {"bounds": (0.0, None)})
        yield Case(op, "both broadcast", (others["per channel"], activation((2, 1, 6, 5), high)))
        yield Case(op, "small first", (others["per channel"], a))
        yield Case(op, "number first", (1.5, a))
        if op != "sub":
            yield Case(op, "float tensor first", (others["float tensor"], a))
        yield Case(op, "no batch", (a[:0], others["plain"][:0]))
    yield Case("add", "alpha", (a, others["plain"]), {"alpha": 2})
    yield Case("add", "clamp", (a, others["plain"]), {"bounds": (-0.5, 1.0)})
    yield Case("div", "number", (a, 3.0))
    yield Case("div", "tensor", (a, activation((2, 8, 6, 5), high, False, 0.03, 0).clamp(0.3, 9.0)))
    yield Case("div", "number first", (2.0, activation((2, 8, 6, 5), high, False, 0.03, 0).clamp(0.3, 9.0)))
    for op in ("maximum", "minimum"):
        yield from (Case(op, label, (a, others[label])) for label in ("plain", "view", "per channel", "float tensor"))
        yield Case(op, "float tensor first", (others["float tensor"], a))
    for dim in (1, -1, 0):
        yield Case("cat", f"dim {dim}", ([a, others["plain"], others["channels_last"]],), {"dim": dim})
        yield Case("stack", f"dim {dim}", ([a, others["plain"]],), {"dim": dim})
    yield Case("cat", "shared scale", ([a, a],), {"dim": 1})


UNARY: dict[str, tuple[dict[str, Any], ...]] = {
    **dict.fromkeys(("sigmoid", "hardsigmoid", "tanh", "silu", "mish", "hardswish", "relu", "softsign", "abs", "exp"), ({},)),
    "pow": ({"exponent": 2}, {"exponent": 3}),
    "hardshrink": ({"lambd": 0.3},),
    "gelu": ({}, {"approximate": "tanh"}),
    "softplus": ({}, {"beta": 2.0}),
    "leaky_relu": ({}, {"negative_slope": 0.2}),
    "elu": ({}, {"alpha": 0.7}),
    "celu": ({}, {"alpha": 0.7}),
    "clamp": ({"min": -0.3, "max": 1.0}, {"min": 0.2}, {"max": 0.5}),
    "softmax": ({"dim": 1}, {"dim": -1}),
}


def unary_cases(high: int, extreme: bool) -> Iterator[Case]:
    del extreme
    full = torch.arange(high + 1, dtype=torch.uint8).reshape(1, -1, 1, 1)
    inputs = {
        "all codes": torch._make_per_tensor_quantized_tensor(full, 0.05, high // 2),
        "fine scale": torch._make_per_tensor_quantized_tensor(full, 0.003, high // 3),
        "view": laid_out(activation((2, 8, 6, 5), high, scale=0.06), "view"),
        "channels_last": laid_out(activation((2, 8, 6, 5), high, scale=0.06), "channels_last"),
        "no batch": activation((0, 8, 6, 5), high),
        "rows": activation((1, 1000), high, scale=0.06),
    }
    for label, x in inputs.items():
        for op, settings in UNARY.items():
            for attributes in settings:
                yield Case(op, f"{label} {attributes or ''}".strip(), (x,), dict(attributes))
    for label in ("view", "no batch"):
        yield Case("prelu", label, (inputs[label], torch.rand(8) - 0.3))


def norm_cases(high: int, extreme: bool) -> Iterator[Case]:
    for dims in (0, 1, 2, 3):
        size = SMALL.get(dims, ())
        x = activation((2, 8, *size), high, extreme)
        mean, var, gamma, beta = torch.randn(8), torch.rand(8) + 0.2, torch.rand(8) + 0.5, torch.randn(8)
        yield Case("batch_norm", f"{dims}-d", (x, mean, var, gamma, beta), {"eps": 1e-3})
        yield Case("batch_norm", f"{dims}-d relu", (x, mean, var, gamma, beta), {"bounds": (0.0, None)})
        yield Case("batch_norm", f"{dims}-d plain", (x, mean, var, None, None))
        yield Case("group_norm", f"{dims}-d", (x, gamma, beta), {"num_groups": 2})
        yield Case("group_norm", f"{dims}-d plain", (x, None, None), {"num_groups": 4})
        if dims:
            yield Case("instance_norm", f"{dims}-d", (x, gamma, beta))
            yield Case("instance_norm", f"{dims}-d view", (laid_out(x, "view"), None, None))
            yield Case("rms_norm", f"{dims}-d", (x, torch.rand(size[-1])), {"normalized_shape": size[-1:]})
            yield Case("rms_norm", f"{dims}-d plain", (x, None), {"normalized_shape": size[-1:], "eps": 1e-3})
            yield Case("layer_norm", f"{dims}-d", (x, torch.rand(size[-1]), torch.randn(size[-1])), {"normalized_shape": size[-1:]})
    yield Case("group_norm", "channels_last", (laid_out(activation((2, 8, 6, 5), high), "channels_last"), None, None), {"num_groups": 2})
    yield Case(
        "layer_norm", "channels_last", (laid_out(activation((2, 8, 6, 5), high), "channels_last"), None, None), {"normalized_shape": (5,)}
    )


def all_cases(high: int, extreme: bool, seed: int = 0) -> Iterator[Case]:
    """Every case with activations of 0..high; the same for the same seed. `extreme` ones have weights that saturate."""
    from qcompiler.backends.torch.bench.shape_cases import shape_cases

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for family in (conv_cases, linear_cases, epilogue_cases, binary_cases, unary_cases, norm_cases, shape_cases):
            yield from family(high, extreme)


def output_scale(case: Case, truth: Tensor) -> tuple[float, int]:
    """What an observer would choose: full range of the truth; the input's or a fixed one where the op says so."""
    row = case.row
    if row.output is Output.SAME:
        return float(case.args[0].q_scale()), int(case.args[0].q_zero_point())
    if row.fixed is not None:
        assert isinstance(row.fixed.scale, float) and isinstance(row.fixed.zero_point, int)
        return row.fixed.scale, row.fixed.zero_point
    first = case.args[0]
    if isinstance(first, list) and all(t.q_scale() == first[0].q_scale() and t.q_zero_point() == first[0].q_zero_point() for t in first):
        return first[0].q_scale(), first[0].q_zero_point()
    low, high = (min(0.0, truth.min().item()), max(0.0, truth.max().item())) if truth.numel() else (0.0, 1.0)
    scale = max((high - low) / 255, math.ulp(1.0))
    return scale, round(-low / scale)
