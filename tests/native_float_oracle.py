"""The oracle of the kernels of floats: the arithmetic of kernels/float.h, norm.h, matmul.h and attention.h in numpy, bit by bit.

Every operation is one of float32 and rounds by itself; arrays (..., n) are rows along their last axis.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
LANES, KEYS = 16, 256  # QC_LANES, QC_KEYS
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4

EXP = (0.0013950602151453495, 0.008368953131139278, 0.04166620597243309, 0.166665181517601, 0.5)
TANH = (-0.005717044696211815, 0.020650586113333702, -0.05374349653720856, 0.13331490755081177, -0.3333328366279602)
ERF = (7.889122935011983e-05, -0.0008020842215046287, 0.005189535673707724, -0.026854444295167923, 0.11283600330352783,
       -0.3761262595653534, 0.12837916612625122)  # fmt: skip
ERFC = (3.5570476484281244e-06, -2.8435881176847033e-05, -0.0001387470110785216, 0.0031820081640034914, -0.023091629147529602,
        0.1056690514087677, -0.3645898699760437, 1.1285995244979858)  # fmt: skip


def f32(value: float) -> np.float32:
    return np.float32(value)


def polynomial(x: Floats, factors: Sequence[float]) -> Floats:
    """Horner's rule, the highest power first."""
    made = np.full_like(x, factors[0])
    for factor in factors[1:]:
        made = made * x + f32(factor)
    return made


def exp(x: Floats) -> Floats:
    x = np.where(x < f32(-105), f32(-105), x)
    x = np.where(x > f32(89), f32(89), x)
    n = (x * f32(1.44269504) + f32(12582912)) - f32(12582912)
    r = (x - n * f32(LN2_HIGH)) - n * f32(LN2_LOW)
    made = polynomial(r, EXP) * (r * r) + r + f32(1)
    whole = np.nan_to_num(n).astype(np.int32)
    half = whole >> 1
    return np.asarray(made * _power(half) * _power(whole - half), np.float32)


def _power(n: NDArray[np.int32]) -> Floats:
    return ((n + 127) << 23).astype(np.int32).view(np.float32)


def tanh(x: Floats) -> Floats:
    t, z = np.abs(x), x * x
    far = f32(1) - f32(2) / (exp(t + t) + f32(1))
    return np.where(t < f32(0.625), polynomial(z, TANH) * z * x + x, np.copysign(far, x))


def erf(x: Floats) -> Floats:
    t, z = np.minimum(np.abs(x), f32(4)), x * x
    far = f32(1) - exp(-t * (t + polynomial(t, ERFC)))
    return np.where(t < f32(1), polynomial(z, ERF) * x + x, np.copysign(far, x))


def sigmoid(x: Floats) -> Floats:
    return f32(1) / (f32(1) + exp(-x))


def gelu(x: Floats) -> Floats:
    return x * f32(0.5) * (f32(1) + erf(x * f32(0.70710678)))


def row_sum(x: Floats) -> Floats:
    """Lane i adds the elements i, 16 + i, ...; then the lanes in halves."""
    lanes = np.zeros((*x.shape[:-1], LANES), np.float32)
    for start in range(0, x.shape[-1], LANES):
        part = x[..., start : start + LANES]
        lanes[..., : part.shape[-1]] += part
    half = LANES // 2
    while half:
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
        half //= 2
    return lanes


def norm(x: Floats, weight: Floats | None, bias: Floats | None, eps: float, rms: bool = False) -> Floats:
    """weight and bias: of x's shape, or spread over it."""
    length = f32(x.shape[-1])
    mean = np.zeros((*x.shape[:-1], 1), np.float32) if rms else row_sum(x) / length
    squares = row_sum((x - mean) * (x - mean)) / length
    made = (x - mean) * (f32(1) / np.sqrt(squares + f32(eps)))
    made = made if weight is None else made * weight
    return np.asarray(made if bias is None else made + bias, np.float32)


def softmax(x: Floats) -> Floats:
    e = exp(x - x.max(-1, keepdims=True))
    return e * (f32(1) / row_sum(e))


def order(x: Floats, largest: bool) -> NDArray[np.int64]:
    """The places of each row's elements in order: equal ones, -0 and 0 among them, as they stand, NaN as the largest."""
    missing = np.isnan(x)
    values = np.where(missing, f32(0), -x if largest else x)
    return np.lexsort((values, ~missing if largest else missing), axis=-1)


def pooled(x: Floats, windows: Sequence[Sequence[Sequence[int]]], largest: bool, counts: Floats | None = None) -> Floats:
    """(N, C, H, W) over windows: for each row of the result the rows of x in its windows, for each column the columns, in order.

    The largest element, NaN where there is one; else the sum in order over `counts` (H, W).
    """
    made = np.full((*x.shape[:2], len(windows[0]), len(windows[1])), -np.inf if largest else 0, np.float32)
    for i, rows in enumerate(windows[0]):
        for j, columns in enumerate(windows[1]):
            for row, column in itertools.product(rows, columns):
                v, have = x[:, :, row, column], made[:, :, i, j]
                made[:, :, i, j] = np.where((v > have) | np.isnan(v), v, have) if largest else have + v
    return made if counts is None else np.asarray(made / counts, np.float32)


def matmul(a: Floats, b: Floats) -> Floats:
    """Sums over k in order."""
    made = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), np.float32)
    return added(made, a, b)


def added(sums: Floats, a: Floats, b: Floats) -> Floats:
    for k in range(a.shape[-1]):
        sums = sums + a[..., :, k, None] * b[..., k, None, :]
    return sums


def attention(q: Floats, k: Floats, v: Floats, scale: float, mask: Floats | None = None) -> Floats:
    """(*batch, queries, E), (*batch, keys, E), (*batch, keys, V); mask (queries, keys), minus infinity where a query sees no key."""
    rows = (*np.broadcast_shapes(q.shape[:-2], v.shape[:-2]), q.shape[-2])
    most, total = np.full((*rows, 1), -np.inf, np.float32), np.zeros((*rows, 1), np.float32)
    sums = np.zeros((*rows, v.shape[-1]), np.float32)
    for first in range(0, k.shape[-2], KEYS):
        keys = slice(first, first + KEYS)
        scores = matmul(q, np.swapaxes(k[..., keys, :], -1, -2)) * f32(scale)
        scores = scores if mask is None else scores + mask[..., keys]
        above = np.maximum(most, scores.max(-1, keepdims=True))
        level = np.where(above == -np.inf, f32(0), above)
        weights, factor = exp(scores - level), exp(most - level)
        total, most = total * factor + row_sum(weights), above
        sums = added(sums * factor, weights, v[..., keys, :])
    return np.where(total == 0, f32(0), sums / np.where(total == 0, f32(1), total))


def ends_of(x: Floats) -> tuple[float, float]:
    """Step and zero point of the range of all elements, widened to contain 0, in 255 steps."""
    low, high = min(float(x.min(initial=0)), 0.0), max(float(x.max(initial=0)), 0.0)
    step, least = (high - low) / 255.0 or 0.1, float(f32(6.1e-5))
    if step < least:
        low, high, step = low * least / step, high * least / step, least
    zero = 0.0 - low / step if abs(low / step) < 255.0 + abs(high / step) else 255.0 - high / step
    return step, float(np.rint(min(max(zero, 0.0), 255.0)))


def encoded(x: Floats, ends: tuple[float, float]) -> NDArray[np.uint8]:
    codes: NDArray[np.uint8] = np.clip(np.rint(x * f32(1.0 / ends[0])) + f32(ends[1]), 0, 255).astype(np.uint8)
    return codes


def dynamic_linear(x: Floats, weight: NDArray[np.int8], scale: NDArray[np.float64], bias: NDArray[np.float64] | None) -> Floats:
    """Rows (..., I) on their own range times int8 weights (O, I): exact sums, then acc * m + b with two roundings."""
    ends = ends_of(x)
    acc = encoded(x, ends).astype(np.int64) @ weight.T.astype(np.int64)
    m = (ends[0] * scale).astype(np.float32)
    offset = np.zeros(len(weight)) if bias is None else bias
    b = (offset - ends[1] * weight.sum(1, dtype=np.int64) * m.astype(np.float64)).astype(np.float32)
    return np.asarray(acc.astype(np.float32) * m + b, np.float32)


def lstm_step(ih: Floats, hh: Floats, cell: Floats) -> tuple[Floats, Floats]:
    """The new hidden state and the new cell state."""
    i, f, g, o = np.split(ih + hh, 4, -1)
    made = sigmoid(f) * cell + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(made), made


def gru_step(ih: Floats, hh: Floats, hidden: Floats) -> Floats:
    (r, z, n), (hr, hz, hn) = np.split(ih, 3, -1), np.split(hh, 3, -1)
    update = sigmoid(z + hz)
    new = tanh(n + sigmoid(r + hr) * hn)
    return np.asarray(new + update * (hidden - new), np.float32)


ZEROS, BORDER, REFLECTION = range(3)


def _warped_to(place: Floats, size: int, padding: int, aligned: bool) -> Floats:
    """Where a place lies among `size` pixels."""
    n, last = f32(size), f32(size) - f32(1)
    from_first = np.where(np.isnan(place), f32(0), place + f32(1))
    at = from_first * (last / f32(2)) if aligned else from_first * (n / f32(2)) - f32(0.5)
    if padding == REFLECTION:
        shift, span = (f32(0), f32(2) * last) if aligned else (f32(0.5), f32(2) * n)
        far = np.abs(at + shift)
        extra = far - np.trunc(far / span) * span if span > 0 else np.zeros_like(far)
        at = np.minimum(extra, span - extra) - shift
    return at if padding == ZEROS else np.clip(at, f32(0), last)


def warp(x: Floats, places: Floats, padding: int, nearest: bool, aligned: bool) -> Floats:
    """x (N, H, W, C) at places (N, h, w, 2), of which the first lies along the width."""
    axes = []
    for size, place in zip(x.shape[1:3], (places[..., 1], places[..., 0]), strict=True):
        at = np.clip(_warped_to(place, size, padding, aligned), f32(-2), f32(size + 1))
        near = np.rint(at) if nearest else np.floor(at)
        index, part = near.astype(np.int64), at - near
        axes.append([(index, f32(1))] if nearest else [(index, f32(1) - part), (index + 1, part)])
    made, index = np.zeros((*places.shape[:3], x.shape[3]), np.float32), np.arange(len(x))[:, None, None]
    for (h, down), (w, across) in itertools.product(*axes):
        inside = (h >= 0) & (h < x.shape[1]) & (w >= 0) & (w < x.shape[2])
        pixel = x[index, np.clip(h, 0, x.shape[1] - 1), np.clip(w, 0, x.shape[2] - 1)]
        made = np.where(inside[..., None], made + pixel * np.asarray(down * across, np.float32)[..., None], made)
    return made
