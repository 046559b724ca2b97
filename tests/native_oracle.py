"""The integer oracle of the kernels: the same arithmetic in plain torch, on codes in torch's layout (N, C, ...).

Sums of products are exact: float64 holds every integer that they reach. Behind them stands the normative epilogue of kernels/qc.h:
v = float32(acc) * m + b, multiplied, then added; rounded half to even; zero point added; clamped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.backends.native.plan.codes import whole_factors


@dataclass(frozen=True)
class Ends:
    """The zero point of a result and the codes that it may have."""

    zero: int = 0
    lo: int = 0
    hi: int = 255


@dataclass(frozen=True)
class Residual:
    """A sum behind the result: q * k + (r * kr + kc), in whole numbers where these hold it."""

    codes: Tensor
    k: float
    kr: float
    kc: float
    ends: Ends = field(default_factory=Ends)


@dataclass(frozen=True)
class Bend:
    """What a function does to a sum before it is rounded: (min(max(v, 0), top) + min(v, 0) * slope) * gain + offset. Each operation is
    rounded to float32; one entry a channel."""

    gain: Tensor
    offset: Tensor
    slope: Tensor
    top: float = math.inf


@dataclass(frozen=True)
class Epilogue:
    """m and b: float32, one entry a channel (axis 1). `curve`: int16, three numbers for 32 pieces; v counts 2048ths of them. `knee`: its
    knee and half, if any."""

    m: Tensor
    b: Tensor
    ends: Ends = field(default_factory=Ends)
    residual: Residual | None = None
    table: Tensor | None = None
    bend: Bend | None = None
    curve: Tensor | None = None
    knee: tuple[int, int] | None = None


@dataclass(frozen=True)
class Window:
    """Settings of a convolution, an entry for each spatial axis."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int = 1


def code(v: Tensor, ends: Ends) -> Tensor:
    """clamp(rne(v) + zero, lo, hi) of float32 values."""
    return torch.clamp(torch.round(v).double() + ends.zero, ends.lo, ends.hi).to(torch.uint8)


def _channel(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape([1, -1] + [1] * (like.dim() - 2))


def affine(acc: Tensor, m: Tensor, b: Tensor) -> Tensor:
    """float32(acc) * m + b by channel, two roundings."""
    product = acc.to(torch.float32) * _channel(m, acc)
    return product + _channel(b, acc)


def bent(v: Tensor, bend: Bend) -> Tensor:
    """float32 values, each operation rounded by itself."""
    v = v.clamp(0.0, bend.top) + v.clamp(max=0.0) * _channel(bend.slope, v)
    return v * _channel(bend.gain, v) + _channel(bend.offset, v)


def curved(v: Tensor, curve: Tensor, ends: Ends) -> Tensor:
    """The parabolas of the pieces at rne(v), cut to 16 bits, in 64ths of a code; what is half a code more rounds up."""
    x = v.clamp(-32768.0, 32767.0).round().to(torch.int32)
    t = (x << 5 ^ 0x8000).to(torch.int16).int()
    base, slope, bend = curve.int().reshape(3, 32)[:, ((x & 0xFFFF) >> 11).long()]
    slope = slope + ((bend * t + 16384) >> 15)
    y: Tensor = (base + ((slope * t + 16384) >> 15)).clamp(-32768, 32767)
    return ((y >> 6) + 128).clamp(ends.lo, ends.hi).to(torch.uint8)


def kneed(v: Tensor, knee: tuple[int, int], ends: Ends) -> Tensor:
    """The product of rne(v), cut to 0..knee, and of what it lies above half; what is half a code more rounds up."""
    x = v.clamp(-32768.0, 32767.0).round().to(torch.int32)
    y: Tensor = (x.clamp(0, knee[0]) * (x - knee[1]).clamp(min=-32768) + 16384) >> 15
    return (y + ends.zero).clamp(ends.lo, ends.hi).to(torch.uint8)


def finish(acc: Tensor, epilogue: Epilogue) -> Tensor:
    """Sums (int, channels on axis 1) to codes."""
    v = affine(acc, epilogue.m, epilogue.b)
    if epilogue.curve is not None:
        return curved(v, epilogue.curve, epilogue.ends)
    if epilogue.knee is not None:
        return kneed(v, epilogue.knee, epilogue.ends)
    q = code(v if epilogue.bend is None else bent(v, epilogue.bend), epilogue.ends)
    if (r := epilogue.residual) is not None:
        q = add(q, r.codes, (r.k, r.kr, r.kc), r.ends)
    return q if epilogue.table is None else epilogue.table[q.long()]


def conv_sums(x: Tensor, weight: Tensor, x_zero: int, window: Window) -> Tensor:
    """The int sums of codes times weights; the padding holds x's zero point. 1, 2 or 3 spatial axes."""
    pads = [p for size in reversed(window.padding) for p in (size, size)]
    wide = F.pad(x.double(), pads, value=float(x_zero))
    convolve = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]
    sums = convolve(wide, weight.double(), None, list(window.stride), 0, list(window.dilation), window.groups)
    return sums.to(torch.int64)


def _float32(value: float, like: Tensor) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device=like.device)


def add(a: Tensor, b: Tensor, factors: tuple[float, float, float], ends: Ends) -> Tensor:
    """In 64ths of a step, cut to 16 bits, or a * ka + (b * kb + kc), each step rounded to float32; the operands are spread as torch spreads
    them."""
    if (whole := whole_factors(factors, ends.zero)) is not None:
        times = [((x.to(torch.int32) - 128) * factor + 64) >> 7 for x, factor in ((a, whole[0]), (b, whole[1]))]
        y = ((times[0] + times[1]).clamp(-32768, 32767) + whole[2]).clamp(-32768, 32767) >> 6
        cut: Tensor = y.clamp(ends.lo, ends.hi).to(torch.uint8)
        return cut
    ka, kb, kc = (_float32(f, a) for f in factors)
    right = b.to(torch.float32) * kb + kc
    return code(a.to(torch.float32) * ka + right, ends)


def mul(a: Tensor, b: Tensor, zeros: tuple[int, int], factor: float, ends: Ends) -> Tensor:
    """(a - za) * (b - zb) exactly, times the factor."""
    product = (a.to(torch.int32) - zeros[0]) * (b.to(torch.int32) - zeros[1])
    return code(product.to(torch.float32) * _float32(factor, a), ends)


def avg_pool(sums: Tensor, counts: Tensor, ratio: float, b: float, ends: Ends) -> Tensor:
    """Sums of windows: acc * float32(ratio / count) + b."""
    m = (ratio / counts.double()).to(torch.float32)
    return code(sums.to(torch.float32) * m + _float32(b, sums), ends)


@dataclass(frozen=True)
class Axis:
    """Along one axis: the two neighbours of each result, and how far it lies towards the second."""

    near: Tensor
    far: Tensor
    part: Tensor

    @staticmethod
    def linear(scale: float, size: int, out: int, aligned: bool) -> Axis:
        """Computed in float32, as torch does."""
        index, step = torch.arange(out, dtype=torch.float32), torch.tensor(scale, dtype=torch.float32)
        at = index * step if aligned else torch.clamp((index + 0.5) * step - 0.5, min=0.0)
        near = torch.clamp(at.to(torch.int64), max=size - 1)
        return Axis(near, torch.clamp(near + 1, max=size - 1), torch.clamp(at - near.to(torch.float32), max=1.0))


def resize_linear(x: Tensor, axes: Sequence[Axis], factors: tuple[float, float], ends: Ends | None) -> Tensor:
    """Elements between their neighbours, along the last axis first; `axes` in the order of x's spatial axes. v * m + b, two roundings;
    codes where there are `ends`, else floats.
    """
    v = x.to(torch.float32)
    for dim, axis in reversed(list(enumerate(axes, 2))):
        part = axis.part.reshape([-1 if i == dim else 1 for i in range(x.dim())])
        right = v.index_select(dim, axis.far) * part
        v = v.index_select(dim, axis.near) * (1.0 - part) + right
    return _scaled(v, factors, ends)


def _scaled(v: Tensor, factors: tuple[float, float], ends: Ends | None) -> Tensor:
    product = v * _float32(factors[0], v)
    made = product + _float32(factors[1], v)
    return made if ends is None else code(made, ends)


def _cubic(scale: float, size: int, out: int, aligned: bool) -> list[tuple[Tensor, Tensor]]:
    """Along one axis: the four neighbours of each result, and their factors."""
    index, step = torch.arange(out, dtype=torch.float32), torch.tensor(scale, dtype=torch.float32)
    at = index * step if aligned else (index + 0.5) * step - 0.5
    t = at - torch.floor(at)

    def near(t: Tensor) -> Tensor:
        return (1.25 * t - 2.25) * t * t + 1.0

    def far(t: Tensor) -> Tensor:
        return ((-0.75 * t + 3.75) * t - 6.0) * t + 3.0

    factors = (far(t + 1.0), near(t), near(1.0 - t), far((1.0 - t) + 1.0))
    first = torch.floor(at).to(torch.int64) - 1
    return [(torch.clamp(first + i, 0, size - 1), factor) for i, factor in enumerate(factors)]


def resize_cubic(
    x: Tensor, size: Sequence[int], scales: Sequence[float], aligned: bool, factors: tuple[float, float], ends: Ends | None
) -> Tensor:
    """Images (N, C, H, W) on a cubic curve through four neighbours, along the width first; then as resize_linear."""
    v = x.to(torch.float32)
    for dim in (3, 2):
        shape = [-1 if i == dim else 1 for i in range(4)]
        parts = [v.index_select(dim, at) * f.reshape(shape) for at, f in _cubic(scales[dim - 2], v.shape[dim], size[dim - 2], aligned)]
        v = ((parts[0] + parts[1]) + parts[2]) + parts[3]
    return _scaled(v, factors, ends)


def quantize(x: Tensor, inverse: float, ends: Ends) -> Tensor:
    """Floats to codes: rne(x * inverse)."""
    return code(x * _float32(inverse, x), ends)


def dequantize(q: Tensor, scale: float, zero: int) -> Tensor:
    """Codes to floats."""
    return (q.to(torch.int32) - zero).to(torch.float32) * _float32(scale, q)
