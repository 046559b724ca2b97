"""A histogram whose bins do not depend on how the data was batched, and the range of least squared error in it.

Bins have the width 2**exponent and edges at its multiples; bin i of the 2n bins holds i - n <= x / 2**exponent < i - n + 1.
The exponent is the smallest at which all data so far lies in the n bins of either side of 0. When data outgrows it, bins are
added up in pairs. As scaling by a power of two is exact, the counts are a function of the set of samples alone: not of their
order, nor of which observer of several that are merged saw them.

Counting each value would take longer than the model (4 ns a value, a convolution's output costs about as much). A sample is a
slice along dimension 0. Small samples are counted in full. Of a large one every stride-th value in memory order is counted,
stride times, and for the rare large values, which decide where to clip, the largest and smallest value of each of some 256 blocks.
If E of n blocks reach beyond t, about -n log(1 - E / n) values do (Poisson). Stride and blocks depend on the shape of one
sample alone. The smallest and largest value are of all values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from qcompiler.errors import ConfigError
from qcompiler.observers.affine import Rule, choose_qparams
from qcompiler.observers.base import EPS, ObserverBase, UniformQuantizationObserverBase, as_data, refuse_nonfinite
from qcompiler.observers.factory import register_observer

# Values counted, and blocks, per sample and tensor: together about as costly as one pass over a convolution's output.
SAMPLED = 2048
BLOCKS = 256
_TAIL = 0.5  # the share of blocks reached below which their extremes say more than the counted values
_EXACT, _SAMPLED, _HIGHS, _LOWS = range(4)  # rows of the histogram
_SMALLEST_EXPONENT = -126  # 2**126 is still a float32
_CLIPS = torch.exp2(torch.arange(112, dtype=torch.float64) / -16)  # 4.4 % apart, down to 1/122 of the range
_TRIED = 24  # candidates of the model that are computed exactly
_LEVELS = 1 << 12  # with more levels than bins there is nothing to gain by clipping


def as_rows(data: torch.Tensor) -> torch.Tensor:
    """One row for each slice along dimension 0, in memory order; a view of dense data."""
    if data.dim() < 2:
        return data.reshape(-1, 1)
    if data.is_contiguous():
        return data.view(data.shape[0], -1)
    inner = sorted(range(1, data.dim()), key=lambda d: -data.stride()[d])
    return data.permute(0, *inner).reshape(data.shape[0], -1)


@dataclass(frozen=True)
class Plan:
    """How a sample of `count` values is read: each `stride`-th value, and the extremes of `blocks` interleaved blocks.

    `offsets`: the first bin of the histogram row that each value read belongs to, plus half a row. The stride shares no
    factor with any dimension, so no row, column or channel is left out.
    """

    stride: int
    blocks: int
    offsets: torch.Tensor


@lru_cache(maxsize=4096)
def plan_for(count: int, bins: int) -> Plan:
    """The plan for samples of this size: the largest number of blocks up to BLOCKS that divides the count, if a good one does."""
    stride = -(-count // SAMPLED)
    while math.gcd(stride, count) > 1:
        stride += 1
    blocks = next((n for n in range(BLOCKS, BLOCKS // 2, -1) if count % n == 0), BLOCKS)
    left = int(count % blocks > 0)
    widths = torch.tensor([-(-count // stride), blocks + left, blocks + left])
    starts = torch.arange(3, dtype=torch.float32) * (2 * bins) + bins
    return Plan(stride, blocks, starts.repeat_interleave(widths))


def read(rows: torch.Tensor, plan: Plan) -> torch.Tensor:
    """For each row: the sampled values, the highs, the lows. Holds the row's extremes, and a NaN where the row has one."""
    size = rows.shape[1] // plan.blocks
    used = size * plan.blocks
    blocks, rest = rows[:, :used].view(-1, size, plan.blocks), rows[:, used:]
    if not rest.shape[1]:
        return torch.cat((rows[:, :: plan.stride], blocks.amax(1), blocks.amin(1)), 1)
    ends = rest.amax(1, keepdim=True), rest.amin(1, keepdim=True)
    return torch.cat((rows[:, :: plan.stride], blocks.amax(1), ends[0], blocks.amin(1), ends[1]), 1)


@dataclass(frozen=True)
class Bins:
    """Filled bins: middle values and counts (float64), with the smallest and largest value of the data."""

    middle: torch.Tensor
    count: torch.Tensor
    low: float
    high: float
    width: float


@register_observer
class HistogramObserver(UniformQuantizationObserverBase):
    """Clips the range where that lowers the expected squared error of quantization. `merge` is exact.

    `bins`: bins on either side of 0, rounded up to a power of two. `histogram` holds int64 counts, in four rows:
    values of small samples, weighted values of large ones, highs and lows of blocks.
    """

    histogram: torch.Tensor
    exponent: torch.Tensor

    def __init__(
        self,
        bins: int = 2048,
        dtype: torch.dtype = torch.uint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        reduce_range: bool | None = None,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = EPS,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(dtype, qscheme, reduce_range, quant_min, quant_max, eps, is_dynamic)
        if not 2 <= bins <= 1 << 20:
            raise ConfigError(f"bins must be between 2 and {1 << 20}, not {bins}", code="observer-bins")
        self.bins = 1 << (bins - 1).bit_length()
        self.register_buffer("min_val", torch.tensor(math.inf))
        self.register_buffer("max_val", torch.tensor(-math.inf))
        self.register_buffer("exponent", torch.tensor(_SMALLEST_EXPONENT))
        self.register_buffer("histogram", torch.zeros(4, 2 * self.bins, dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.numel():
            return x
        rows = as_rows(as_data(x))
        count = rows.shape[1]
        plan = plan_for(count, self.bins) if count > SAMPLED else None
        values = read(rows, plan) if plan else rows
        low, high = (end.item() for end in torch.aminmax(values))
        if not (math.isfinite(low) and math.isfinite(high)):
            refuse_nonfinite(rows)
        exponent = self._exponent_for(low, high)
        if exponent > 0:  # a small negative value must not underflow to bin 0
            values = values.double()
        index = (values * 2.0**-exponent).floor_().add_(plan.offsets if plan else self.bins).to(torch.int32).view(-1)
        counts = torch.bincount(index, minlength=2 * self.bins * (3 if plan else 1)).view(-1, 2 * self.bins)
        if plan:
            counts[0] *= plan.stride
        self._add(low, high, exponent, slice(_SAMPLED, _LOWS + 1) if plan else slice(_EXACT, _SAMPLED), counts)
        self._note(low, high)
        return x

    def _exponent_for(self, low: float, high: float) -> int:
        """The smallest e with |x| < bins * 2**e for low, high and all data so far."""
        peak = max(-low, high)
        if peak == 0:  # fits any bins; frexp(0) is (0, 0), the exponent of numbers near 1
            return int(self.exponent.item())
        return max(math.frexp(peak)[1] - self.bins.bit_length() + 1, int(self.exponent.item()))

    def _add(self, low: float, high: float, exponent: int, where: slice, counts: torch.Tensor) -> None:
        if exponent > self.exponent.item():
            self.histogram.copy_(coarser(self.histogram, exponent - int(self.exponent.item())))
            self.exponent.fill_(exponent)
        self.histogram[where] += counts
        if low < self.min_val.item():
            self.min_val.fill_(low)
        if high > self.max_val.item():
            self.max_val.fill_(high)

    def merge(self, other: ObserverBase) -> None:
        self._check_same_kind(other)
        assert isinstance(other, HistogramObserver)
        if other.bins != self.bins:
            raise ConfigError(f"cannot merge {other.bins} bins into {self.bins}", code="observer-merge")
        mine, theirs = int(self.exponent.item()), int(other.exponent.item())
        counts = coarser(other.histogram, max(mine - theirs, 0))
        self._add(other.min_val.item(), other.max_val.item(), max(mine, theirs), slice(0, 4), counts)

    def reset_min_max_vals(self) -> None:
        super().reset_min_max_vals()
        self.histogram.zero_()
        self.exponent.fill_(_SMALLEST_EXPONENT)

    def filled(self) -> Bins:
        """The bins that hold data. The extremes count once where none of the counted values fell into their bins."""
        width = 2.0 ** int(self.exponent.item())
        low, high = self.min_val.item(), self.max_val.item()
        count = estimated_counts(self.histogram)
        for value in (low, high):
            index = math.floor(value / width) + self.bins
            count[index] = max(count[index].item(), 1.0)
        where = count.nonzero().squeeze(1)
        middle = (where.to(torch.float64) - self.bins + 0.5) * width
        middle[where == self.bins] = 0.0  # mostly exact zeros, behind a ReLU
        return Bins(middle.clamp(low, high), count[where], low, high, width)

    def _range(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.quant_max - self.quant_min > _LEVELS or self.min_val == self.max_val:
            return self.min_val, self.max_val
        return self._search(self.filled())

    def _search(self, bins: Bins) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = search_l2(bins, self._rule())
        return torch.tensor(low), torch.tensor(high)

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *rest: list[str]) -> None:  # type: ignore[override]
        counts = state_dict.get(prefix + "histogram")
        if counts is not None and (counts.dim() != 2 or counts.shape[0] != 4):
            raise ConfigError("this histogram has another kind of bins (torch.ao's?)", code="observer-state")
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.bins = self.histogram.shape[1] // 2


def coarser(histogram: torch.Tensor, steps: int) -> torch.Tensor:
    """The same counts with bins 2**steps times as wide."""
    if steps <= 0:
        return histogram
    half = histogram.shape[1] // 2
    index = ((torch.arange(2 * half) - half) >> min(steps, 63)) + half
    return torch.zeros_like(histogram).index_add_(1, index, histogram)


def estimated_counts(histogram: torch.Tensor) -> torch.Tensor:
    """Values per bin, float64: the counted ones, but in both tails those that the extremes of blocks tell of."""
    sampled = histogram[_SAMPLED].double()
    for row, flip in ((_HIGHS, False), (_LOWS, True)):
        ends = histogram[row].flip(0) if flip else histogram[row]
        blocks = ends.sum()
        if blocks == 0:
            continue
        reached = ends.flip(0).cumsum(0).flip(0).double() / blocks  # share of blocks with an extreme in this bin or beyond
        beyond = -torch.log1p(-reached.clamp(max=_TAIL)) * blocks
        tail = reached <= _TAIL
        values = torch.where(tail, beyond - torch.cat((beyond[1:], beyond.new_zeros(1))), sampled.flip(0) if flip else sampled)
        sampled = values.flip(0) if flip else values
    return sampled + histogram[_EXACT]


def squared_errors(bins: Bins, low: torch.Tensor, high: torch.Tensor, rule: Rule, power: float = 2.0) -> torch.Tensor:
    """Sum of |dequantize(quantize(x)) - x|**power over the bins for each range low[k]..high[k]; shape (k,), float64."""
    scale, zero_point = choose_qparams(low.float(), high.float(), rule)
    step, zero = scale.double()[:, None], zero_point.double()[:, None]
    quantized = (bins.middle / step).round_().clamp_(rule.quant_min - zero, rule.quant_max - zero)
    error = quantized.mul_(step).sub_(bins.middle).abs_()
    return (error.square_() if power == 2.0 else error.pow_(power)) @ bins.count


def candidates(bins: Bins, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranges to try, the full one first: both ends shrunk by the factors of _CLIPS, together where symmetric."""
    low, high = min(bins.low, 0.0), max(bins.high, 0.0)
    if symmetric:
        bound = max(-low, high) * _CLIPS
        return -bound, bound
    lows = low * _CLIPS if low < 0 else torch.zeros(1, dtype=torch.float64)
    highs = high * _CLIPS if high > 0 else torch.zeros(1, dtype=torch.float64)
    pairs = torch.cartesian_prod(lows, highs)
    return pairs[:, 0], pairs[:, 1]


def within(bins: Bins, low: torch.Tensor, high: torch.Tensor, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The ranges without what lies beyond all data and 0 (where symmetric: beyond the largest distance from 0)."""
    ends = (-max(-bins.low, bins.high), max(-bins.low, bins.high)) if symmetric else (min(bins.low, 0.0), max(bins.high, 0.0))
    return low.clamp(min=ends[0]), high.clamp(max=ends[1])


def model_errors(bins: Bins, low: torch.Tensor, high: torch.Tensor, levels: int) -> torch.Tensor:
    """Estimated squared error per range: step**2 / 12 for each value inside (0 is exact), the overshoot squared outside."""
    zero = torch.zeros(1, dtype=torch.float64)
    sums = [torch.cat((zero, (bins.count * bins.middle**k).cumsum(0))) for k in range(3)]
    first = torch.searchsorted(bins.middle, low.contiguous())
    last = torch.searchsorted(bins.middle, high.contiguous(), right=True)
    below = sums[2][first] - 2 * low * sums[1][first] + low**2 * sums[0][first]
    rest = [s[-1] - s[last] for s in sums]
    above = rest[2] - 2 * high * rest[1] + high**2 * rest[0]
    exact = bins.count[bins.middle == 0].sum()
    inside = sums[0][last] - sums[0][first] - exact
    return below + above + inside * ((high - low) / levels) ** 2 / 12


def search_l2(bins: Bins, rule: Rule) -> tuple[float, float]:
    """The range of least expected squared error: the best few of a model are computed exactly, the best of those is refined."""
    low, high = candidates(bins, rule.symmetric)
    guess = model_errors(bins, low, high, rule.quant_max - rule.quant_min)
    chosen = torch.cat((torch.zeros(1, dtype=torch.int64), guess.topk(min(_TRIED, guess.numel()), largest=False).indices))
    low, high = low[chosen], high[chosen]
    best = int(squared_errors(bins, low, high, rule).argmin())
    factors = torch.tensor([1.0, 0.97, 0.985, 1.015, 1.03], dtype=torch.float64)
    if rule.symmetric or low[best] == 0 or high[best] == 0:
        lows, highs = low[best] * factors, high[best] * factors
    else:
        pairs = torch.cartesian_prod(factors, factors)
        lows, highs = low[best] * pairs[:, 0], high[best] * pairs[:, 1]
    lows, highs = within(bins, lows, highs, rule.symmetric)
    best = int(squared_errors(bins, lows, highs, rule).argmin())
    return float(lows[best]), float(highs[best])
