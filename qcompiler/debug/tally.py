"""Sums over batches of how far a value of the quantized graph is from its float counterpart; memory does not grow with the data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qcompiler.executable.steps import Grid, Weight

BINS = 64
COUNTED = 1 << 16  # values of one tensor that the histogram counts; of larger ones every k-th, k odd
PIECE = 1 << 18  # values that are summed at once: a whole tensor's squares and differences would take as much room as it


@dataclass(frozen=True)
class Histogram:
    """Counts in equal bins from `low` to `high`; `clip`: what the integers can hold; `step`: the width of one integer."""

    low: float
    high: float
    counts: tuple[int, ...]
    clip: tuple[float, float] | None = None
    step: float | None = None


class Counter:
    """Counts of finite values in 64 bins of width 2**exponent at its multiples; bins are added up in pairs when data outgrows them.

    So the counts do not depend on the order or the batches of the data.
    """

    def __init__(self) -> None:
        self.exponent, self.first = -126, 0
        self.low, self.high = math.inf, -math.inf
        self.counts = torch.zeros(BINS, dtype=torch.int64)

    def add(self, values: Tensor) -> None:
        if values.numel():
            low, high = (float(v) for v in torch.aminmax(values))
            self.count(values.reshape(-1)[:: _every(values.numel())], low, high)

    def count(self, values: Tensor, low: float, high: float) -> None:
        """Some of many values that lie between these ends."""
        had = self.low <= self.high
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(had)
        index = (values.double() * 2.0**-self.exponent).floor_().long() - self.first
        self.counts += torch.bincount(index.clamp_(0, BINS - 1), minlength=BINS)

    def _widen(self, had: bool) -> None:
        """The smallest width at which all data lies in 64 bins."""
        old, first = self.exponent, self.first
        exponent = max(old, math.frexp(max(self.high - self.low, abs(self.high) * 1e-6, 1e-30))[1] - 7)
        while math.floor(self.high * 2.0**-exponent) - math.floor(self.low * 2.0**-exponent) >= BINS:
            exponent += 1
        self.exponent, self.first = exponent, math.floor(self.low * 2.0**-exponent)
        if not had:
            return
        counts = torch.zeros(BINS, dtype=torch.int64)
        where = torch.div(torch.arange(BINS) + first, 2 ** min(exponent - old, 62), rounding_mode="floor") - self.first
        counts.index_add_(0, where.clamp_(0, BINS - 1), self.counts)
        self.counts = counts

    def histogram(self, grid: Grid | None = None) -> Histogram | None:
        if self.low > self.high:
            return None
        width = 2.0**self.exponent
        clip = step = None
        if grid is not None:
            step, zero, least, most = grid
            clip = (step * (least - zero), step * (most - zero))
        return Histogram(self.first * width, (self.first + BINS) * width, tuple(self.counts.tolist()), clip, step)


@dataclass
class Tally:
    """Everything that is summed of one node. See comparison.py for what is made of it."""

    signal: float = 0.0
    noise: float = 0.0
    own: float = 0.0
    inherited: float = 0.0
    max_abs: float = 0.0
    count: int = 0
    left_out: int = 0  # values that are NaN or inf in float
    clipped: int = 0
    codes: tuple[float, float] = (math.inf, -math.inf)
    grid: Grid | None = None
    most: int = 255  # the largest code of the range that calibration gave
    channels: list[Tensor] | None = None  # extremes of the quantized, then of the float values of each channel
    powers: list[Tensor] | None = None  # signal and own noise of each channel
    mixed: bool = False  # the number of channels differs between calls
    values: Counter = field(default_factory=Counter)

    def add(self, reference: Tensor, value: Tensor, own: tuple[Tensor, Tensor], grid: Grid | None) -> None:
        """One tensor: its float and quantized values, and the two whose difference is its own error."""
        given = [reference, value, *own]
        if not all(bool(torch.isfinite(part).all()) for part in _pieces(reference)):  # a mask of -inf is no signal
            finite = torch.isfinite(reference)
            self.left_out += int((~finite).sum())
            given = [torch.where(finite, t, torch.zeros_like(t)) for t in given]
            del finite
        self.values.add(given[0])
        for reference, value, perfect, made in zip(*map(_pieces, given), strict=True):
            self._add(reference, value, made - perfect, grid)

    def _add(self, reference: Tensor, value: Tensor, own: Tensor, grid: Grid | None) -> None:
        error = value - reference
        self.signal += _power(reference)
        self.noise += _power(error)
        self.own += _power(own)
        self.inherited += _power(error - own)
        self.count += reference.numel()
        if reference.numel():
            self.max_abs = max(self.max_abs, float(error.abs().max()))
            self._channels(reference, value, own)
        if grid is not None and reference.numel():
            self._codes(reference, value, grid)

    def _codes(self, reference: Tensor, value: Tensor, grid: Grid) -> None:
        self.grid = grid
        scale, zero, least, most = grid
        low, high = scale * (least - zero - 0.5), scale * (most - zero + 0.5)
        self.clipped += int(((reference < low) | (reference > high)).sum())
        ends = [round(float(v) / scale) + zero for v in torch.aminmax(value)]
        self.codes = min(self.codes[0], ends[0]), max(self.codes[1], ends[1])

    def _channels(self, reference: Tensor, value: Tensor, own: Tensor) -> None:
        """Extremes and powers per channel: dimension 1, of three-dimensional values (batch, tokens, features) the last."""
        if reference.dim() < 2 or self.mixed:
            return
        axis = _channel_axis(reference)
        others = [d for d in range(reference.dim()) if d != axis]
        found = [f(t, dim=others) for t in (value, reference) for f in (torch.amin, torch.amax)]
        powers = [t.pow(2).sum(dim=others, dtype=torch.float64) for t in (reference, own)]
        if self.channels is None or self.powers is None:
            self.channels, self.powers = found, powers
        elif self.channels[0].shape == found[0].shape:
            self.channels = [f(a, b) for f, a, b in zip(2 * (torch.minimum, torch.maximum), self.channels, found)]
            self.powers = [a + b for a, b in zip(self.powers, powers)]
        else:
            self.mixed, self.channels, self.powers = True, None, None

    def decibels(self, noise: float) -> float:
        """The signal against some noise: inf without noise, -inf without signal."""
        if math.isnan(noise):
            return -math.inf
        return math.inf if noise == 0 else 10 * math.log10(self.signal / noise) if self.signal and noise < math.inf else -math.inf

    @property
    def dead(self) -> tuple[int, int]:
        """Channels of one single value, in the quantized and in the float graph."""
        if self.channels is None or len(self.channels[0]) < 2:
            return 0, 0
        low, high, float_low, float_high = self.channels
        return int((low == high).sum()), int((float_low == float_high).sum())

    @property
    def own_of_channels(self) -> float:
        """The median over the channels that have a signal of the decibels against own noise: one large channel does not hide the rest."""
        if self.powers is None or self.mixed:
            return self.decibels(self.own)
        signal, own = (p[self.powers[0] > 0] for p in self.powers)
        if not len(signal):
            return self.decibels(self.own)
        share = float((own / signal).nan_to_num(math.inf).median())
        return -10 * math.log10(share) if 0 < share < math.inf else math.inf if share == 0 else -math.inf

    @property
    def unused(self) -> float:
        """Share of the integers of the range that no value took."""
        if self.grid is None or self.codes[0] > self.codes[1]:
            return 0.0
        _, _, least, most = self.grid
        most = max(min(most, self.most), least)
        return max(0.0, 1 - (min(self.codes[1], most) - max(self.codes[0], least) + 1) / (most - least + 1))


def _channel_axis(x: Tensor) -> int:
    return 2 if x.dim() == 3 else 1


def _pieces(x: Tensor) -> Iterator[Tensor]:
    """A tensor in parts of about `PIECE` values, each with all of its channels."""
    if x.numel() <= PIECE:
        yield x
        return
    longest = max((d for d in range(x.dim()) if x.dim() == 1 or d != _channel_axis(x)), key=lambda d: x.shape[d])
    yield from x.split(max(1, PIECE * x.shape[longest] // x.numel()), longest)


def _power(x: Tensor) -> float:
    return float(x.pow(2).sum(dtype=torch.float64))


def _every(count: int) -> int:
    """Of so many values each k-th is counted, k odd."""
    return -(-count // COUNTED) | 1


def _some_of(codes: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, float, float]:
    """The real values that a histogram counts, and the ends of all: some rows at a time, since all take eight times their codes."""
    step, rows, done = _every(codes.numel()), max(1, PIECE * len(codes) // codes.numel()), 0
    found, lows, highs = list[Tensor](), list[float](), list[float]()
    for at in range(0, len(codes), rows):
        s, z = (x[at : at + rows] if x.dim() and len(x) == len(codes) else x for x in (scale, zero))
        real = codes[at : at + rows].double().sub_(z).mul_(s)
        found.append(real.reshape(-1)[-done % step :: step].clone())
        low, high = torch.aminmax(real)
        lows.append(float(low))
        highs.append(float(high))
        done += real.numel()
    return torch.cat(found), min(lows), max(highs)


def weight_histogram(weight: Weight) -> Histogram | None:
    """Of an int8 weight's real values, with the widest channel's clip lines."""
    counter, axis, codes = Counter(), weight.axis, weight.values
    shape = [-1 if d == axis else 1 for d in range(codes.dim())] if axis is not None else []
    scale, zero = (t.double().reshape(shape) if axis is not None else t.double() for t in (weight.scale, weight.zero_point))
    if codes.numel():
        counter.count(*_some_of(codes, scale, zero))
    widest = int(weight.scale.reshape(-1).argmax())
    step, offset = float(weight.scale.reshape(-1)[widest]), int(weight.zero_point.reshape(-1)[widest])
    return counter.histogram((step, offset, -128, 127))
