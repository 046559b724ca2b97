"""A histogram whose bins do not depend on how the data was batched, and the range of least squared error in it.

Bins have the width 2**exponent and edges at its multiples; bin i of the 2n bins holds i - n <= x / 2**exponent < i - n + 1.
The exponent is the smallest at which all data so far lies in the n bins of either side of 0. When data outgrows it, bins are
added up in pairs. As scaling by a power of two is exact, the counts are a function of the set of samples alone: not of their
order, nor of which observer of several that are merged saw them.

Counting each value would take longer than the model (4 ns a value, a convolution's output costs about as much). So of each
sample (slice along dimension 0) every stride-th value is counted, stride times, from its first on in memory order; the stride depends on
the shape of one sample alone. The smallest and largest value are of all values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from qcompiler.errors import ConfigError
from qcompiler.observers.affine import Rule, choose_qparams
from qcompiler.observers.base import EPS, ObserverBase, UniformQuantizationObserverBase, as_data, finite_range
from qcompiler.observers.factory import register_observer

# Values counted per sample and tensor; see docs and tests/test_observers.py for what it costs and what accuracy it leaves.
SAMPLED = 4096
_SMALLEST_EXPONENT = -126  # 2**126 is still a float32
_CLIPS = 2.0 ** (-torch.arange(0, 112, dtype=torch.float64) / 16)  # 4.4 % apart, down to 1/122 of the range
_EXACT = 24  # candidates of the model that are computed exactly
_LEVELS = 1 << 12  # with more levels than bins there is nothing to gain by clipping


def sample_of(data: torch.Tensor, limit: int = SAMPLED) -> tuple[torch.Tensor, int]:
    """(values, stride): every stride-th value of each slice along dimension 0, at most about `limit` of each slice.

    The stride shares no factor with any dimension, so that no row, column or channel is left out.
    """
    if data.dim() < 2:
        return data.reshape(-1), 1
    count = data.numel() // data.shape[0]
    if count <= limit:
        return data.reshape(-1), 1
    stride = -(-count // limit)
    while math.gcd(stride, count) > 1:
        stride += 1
    inner = sorted(range(1, data.dim()), key=lambda d: -data.stride(d))
    return data.permute(0, *inner).reshape(data.shape[0], count)[:, ::stride], stride


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

    `bins`: bins on either side of 0, rounded up to a power of two. `histogram` holds int64 counts.
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
        self.register_buffer("histogram", torch.zeros(2 * self.bins, dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel():
            data = as_data(x)
            low, high = finite_range(data)
            exponent = self._exponent_for(low, high)
            values, stride = sample_of(data)
            self._add(low, high, exponent, self._counted(values, exponent), stride)
        return x

    def _exponent_for(self, low: float, high: float) -> int:
        """The smallest e with |x| < bins * 2**e for low, high and all data so far."""
        needed = math.frexp(max(-low, high))[1] - self.bins.bit_length() + 1
        return max(needed, int(self.exponent.item()))

    def _counted(self, values: torch.Tensor, exponent: int) -> torch.Tensor:
        index = (values * 2.0**-exponent).floor_().add_(self.bins)
        return torch.bincount(index.reshape(-1).to(torch.int32), minlength=2 * self.bins)

    def _add(self, low: float, high: float, exponent: int, counts: torch.Tensor, weight: int) -> None:
        if exponent > self.exponent.item():
            self.histogram.copy_(coarser(self.histogram, exponent - int(self.exponent.item())))
            self.exponent.fill_(exponent)
        self.histogram.add_(counts, alpha=weight)
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
        self._add(other.min_val.item(), other.max_val.item(), max(mine, theirs), counts, 1)

    def reset_min_max_vals(self) -> None:
        super().reset_min_max_vals()
        self.histogram.zero_()
        self.exponent.fill_(_SMALLEST_EXPONENT)

    def filled(self) -> Bins:
        """The bins that hold data. The extremes count once where none of the counted values fell into their bins."""
        width = 2.0 ** int(self.exponent.item())
        low, high = self.min_val.item(), self.max_val.item()
        count = self.histogram.to(torch.float64)
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
        if counts is not None and (counts.dtype.is_floating_point or counts.numel() % 2):
            raise ConfigError("this histogram has another kind of bins (torch.ao's?)", code="observer-state")
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.bins = self.histogram.numel() // 2


def coarser(histogram: torch.Tensor, steps: int) -> torch.Tensor:
    """The same counts with bins 2**steps times as wide."""
    if steps <= 0:
        return histogram
    half = histogram.numel() // 2
    index = ((torch.arange(2 * half) - half) >> min(steps, 63)) + half
    return torch.zeros_like(histogram).index_add_(0, index, histogram)


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
    chosen = torch.cat((torch.zeros(1, dtype=torch.int64), guess.topk(min(_EXACT, guess.numel()), largest=False).indices))
    low, high = low[chosen], high[chosen]
    best = int(squared_errors(bins, low, high, rule).argmin())
    factors = torch.tensor([1.0, 0.97, 0.985, 1.015, 1.03], dtype=torch.float64)
    if rule.symmetric or low[best] == 0 or high[best] == 0:
        lows, highs = low[best] * factors, high[best] * factors
    else:
        pairs = torch.cartesian_prod(factors, factors)
        lows, highs = low[best] * pairs[:, 0], high[best] * pairs[:, 1]
    best = int(squared_errors(bins, lows, highs, rule).argmin())
    return float(lows[best]), float(highs[best])
