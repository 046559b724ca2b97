"""Weights in the order that kernels read, and the constants of their epilogues.

A block of weights belongs to 16 output channels; in it stand the spans of the window one after the other, each padded with zeros to
chunks of at most 64 bytes of equal length: [blocks][spans][bytes / 4][16 channels][4 bytes]. One such chunk of 16 rows is a tile of
AMX, a row of it a vector of AVX-512 VNNI. See kernels/qc.h.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int8 = NDArray[np.int8]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

MAX_SPANS = 1024  # QC_MAX_SPANS
_LIMIT = float(2**31 - 2**8)  # the largest float32 that is an int32


@dataclass(frozen=True)
class PackedConv:
    """`groups` and `fold` are what the kernel is told: narrow groups are merged, with zeros between them."""

    weights: Int8
    groups: int
    fold: bool


def _ceil(a: int, b: int) -> int:
    return (a + b - 1) // b


def padded(channels: int) -> int:
    """The length of vectors with an entry a channel: m, b, sums."""
    return 32 * _ceil(channels, 32)


def merged_groups(groups: int, out: int) -> int:
    """How many groups a kernel sees: as many as possible whose output channels fill blocks of 16, else one."""
    for count in range(groups, 0, -1):
        if groups % count == 0 and (count == 1 or out // count % 16 == 0):
            return count
    return 1


def merge_groups(weight: Int8, groups: int, count: int) -> Int8:
    """(O, I / groups, *window) as (O, I / count, *window): zeros where an output channel does not see an input channel."""
    out, width = weight.shape[:2]
    times = groups // count
    wide = np.zeros((out, width * times, *weight.shape[2:]), np.int8)
    for group in range(groups):
        rows = slice(group * out // groups, (group + 1) * out // groups)
        at = group % times * width
        wide[rows, at : at + width] = weight[rows]
    return wide


def pack_conv(weight: Int8, groups: int = 1, fold: bool = True) -> PackedConv:
    """Weight (O, I / groups, *window), or (O, I) of a linear. fold: taps of a kernel row may be one span (dilation 1, no gaps
    between pixels); it does not count where groups remain.
    """
    window = (1,) * (5 - weight.ndim) + weight.shape[2:]
    count = merged_groups(groups, weight.shape[0])
    dense = merge_groups(weight, groups, count)
    fold = fold and count == 1
    dense = dense.reshape(*dense.shape[:2], *window).transpose(0, 2, 3, 4, 1)  # O, kd, kh, kw, I
    spans = window[0] * window[1] * (1 if fold else window[2])
    grouped = dense.reshape(count, dense.shape[0] // count, spans, -1)
    return PackedConv(_blocks(grouped, 32 if count == 1 else 16), count, fold)


def _blocks(weights: Int8, multiple: int) -> Int8:
    """(groups, channels, spans, length) in blocks of 16 channels, their number padded to `multiple` channels."""
    groups, channels, spans, length = weights.shape
    chunks = _ceil(length, 64)
    width = chunks * 4 * _ceil(_ceil(length, chunks), 4)
    full = np.zeros((groups, multiple * _ceil(channels, multiple), spans, width), np.int8)
    full[:, :channels, :, :length] = weights
    fours = full.view(np.int32).reshape(groups, -1, 16, spans, width // 4)  # four bytes move together: a tenth of the time
    return np.ascontiguousarray(fours.transpose(0, 1, 3, 4, 2)).view(np.int8).reshape(-1)


@dataclass(frozen=True)
class RowSums:
    """Of each output channel the sum of its weights, and of those above zero. They are found once for all that asks for them."""

    total: Int64
    positive: Int64

    @staticmethod
    def of(weight: Int8) -> RowSums:
        rows = weight.reshape(weight.shape[0], -1)
        wide = np.int32 if rows.shape[1] < 2**24 else np.int64  # half the time
        total, positive = rows.sum(1, dtype=wide), np.maximum(rows, 0).sum(1, dtype=wide)
        return RowSums(total.astype(np.int64), positive.astype(np.int64))

    @property
    def largest(self) -> Int64:
        """What no sum of products with codes exceeds, whatever its sign."""
        return np.asarray(255 * np.maximum(self.positive, self.positive - self.total))

    @property
    def padded(self) -> Int32:
        """The sums as kernels take them."""
        sums = np.zeros(padded(len(self.total)), np.int32)
        sums[: len(self.total)] = self.total
        return sums

    @property
    def stay_small(self) -> bool:
        """Whether no sum of products with codes reaches 2^25: then kernels may compute 64 times it in 32 bits."""
        return bool((self.largest < 2**25).all())


def pack_depthwise(weight: Int8) -> Int8:
    """Weight (C, 1, *window) as [C / 16][kd][ceil(kh / 4)][kw][16][4 kernel rows], C padded to 64."""
    window = (1,) * (5 - weight.ndim) + weight.shape[2:]
    depth, height, width = window
    full = np.zeros((64 * _ceil(weight.shape[0], 64), depth, 4 * _ceil(height, 4), width), np.int8)
    full[: weight.shape[0], :, :height] = weight.reshape(weight.shape[0], *window)
    parts = full.reshape(-1, 16, depth, full.shape[2] // 4, 4, width).transpose(0, 2, 3, 5, 1, 4)
    return np.ascontiguousarray(parts).reshape(-1)


@dataclass(frozen=True)
class Folded:
    """acc * m + b is the result in quanta of y, without its zero point; wide: it may leave the 32-bit integers."""

    m: Float32
    b: Float32
    wide: bool


def fold_epilogue(sums: RowSums, weight_scale: Float64, bias: Float64 | None, x_scale: float, x_zero: int, y_scale: float) -> Folded:
    """m = float32(sx * sw / sy); b = float32(bias / sy - zx * sum(w) * m), in double. For results in float y_scale is 1."""
    out = len(sums.total)
    scales = np.broadcast_to(np.asarray(weight_scale, np.float64).reshape(-1), (out,))
    m = (x_scale * scales / y_scale).astype(np.float32)
    offset = np.zeros(out) if bias is None else np.asarray(bias, np.float64) / y_scale
    b = (offset - x_zero * sums.total * m.astype(np.float64)).astype(np.float32)
    reach = float(np.max(sums.largest.astype(np.float64) * np.abs(m.astype(np.float64)) + np.abs(b.astype(np.float64)), initial=0.0))
    return Folded(padded_floats(m), padded_floats(b), not (math.isfinite(reach) and reach < _LIMIT / 2))


def padded_floats(values: Float32) -> Float32:
    """An entry a channel, with zeros behind the last."""
    full = np.zeros(padded(len(values)), np.float32)
    full[: len(values)] = values
    return full


def sums_fit(weight: Int8) -> bool:
    """Whether no sum of products can leave the 32-bit integers."""
    if 255 * 128 * weight[:1].size < 2**31:
        return True
    rows = np.abs(weight.reshape(weight.shape[0], -1).astype(np.int16)).sum(1, dtype=np.int64)
    return bool((255 * rows < 2**31).all())
