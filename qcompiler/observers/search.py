"""Other ways to choose a range from the same histogram: percentiles, least L_p error, least loss of information."""

from __future__ import annotations

from typing import Any

import torch

from qcompiler.errors import ConfigError
from qcompiler.observers.factory import register_observer
from qcompiler.observers.histogram import Bins, HistogramObserver, search_l2, squared_errors, within

_GRID = 0.25 + 0.01 * torch.arange(120, dtype=torch.float64)  # factors around the L2 optimum, 0.25 .. 1.44
_ROUNDS = 2
_FLOOR = 1e-12  # probability of what Q has lost; 0 would make any clipping infinitely bad
_THRESHOLDS = 64  # clipping thresholds that the entropy search tries


@register_observer
class PercentileObserver(HistogramObserver):
    """The range that holds `percentile` % of the values; what is outside is cut half on each side, none beyond min or max."""

    def __init__(self, percentile: float = 99.99, **kwargs: Any) -> None:
        if not 50 < percentile <= 100:
            raise ConfigError(f"percentile must be above 50 and at most 100, not {percentile}", code="observer-percentile")
        super().__init__(**kwargs)
        self.percentile = percentile

    def _search(self, bins: Bins) -> tuple[torch.Tensor, torch.Tensor]:
        cut = (1 - self.percentile / 100) * (0.5 if bins.low < 0 < bins.high else 1.0)
        share = bins.count.cumsum(0) / bins.count.sum()
        first = int(torch.searchsorted(share, torch.tensor(cut, dtype=torch.float64), right=True))
        last = int(torch.searchsorted(share, torch.tensor(1 - cut, dtype=torch.float64)))
        low = bins.middle[min(first, share.numel() - 1)].item() - bins.width / 2 if cut and bins.low < 0 else bins.low
        high = bins.middle[min(last, share.numel() - 1)].item() + bins.width / 2 if cut and bins.high > 0 else bins.high
        return torch.tensor(max(low, bins.low)), torch.tensor(min(high, bins.high))


@register_observer
class MSEObserver(HistogramObserver):
    """The range of least |error|**power (2: mean squared error), by a finer search than HistogramObserver's."""

    def __init__(self, power: float = 2.0, **kwargs: Any) -> None:
        if not 0.5 <= power <= 8:
            raise ConfigError(f"power must be between 0.5 and 8, not {power}", code="observer-power")
        super().__init__(**kwargs)
        self.power = power

    def _search(self, bins: Bins) -> tuple[torch.Tensor, torch.Tensor]:
        rule = self._rule()
        low, high = (torch.tensor(v, dtype=torch.float64) for v in search_l2(bins, rule))
        for _ in range(_ROUNDS):
            if rule.symmetric:
                low, high = self._best(bins, low * _GRID, high * _GRID)
                continue
            low, high = self._best(bins, low * _GRID, high.expand_as(_GRID))
            low, high = self._best(bins, low.expand_as(_GRID), high * _GRID)
        full = torch.tensor([min(bins.low, 0.0)]).double(), torch.tensor([max(bins.high, 0.0)]).double()
        low, high = self._best(bins, torch.cat((low[None], full[0])), torch.cat((high[None], full[1])))
        return low.float(), high.float()

    def _best(self, bins: Bins, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rule = self._rule()
        low, high = within(bins, low, high, rule.symmetric)
        best = int(squared_errors(bins, low, high, rule, self.power).argmin())
        return low[best], high[best]


@register_observer
class EntropyObserver(HistogramObserver):
    """The symmetric clip of |x| of least Kullback-Leibler divergence between the values and the quantized values.

    Source: S. Migacz, "8-bit inference with TensorRT", 2017. Zeros are left out, as they are exact.
    """

    def _search(self, bins: Bins) -> tuple[torch.Tensor, torch.Tensor]:
        limit = max(-bins.low, bins.high)
        levels = self.quant_max - self.quant_min
        size = bins.middle.abs()
        slots = 8 * (levels + 1)
        histogram = torch.zeros(slots, dtype=torch.float64)
        index = (size / limit * slots).long().clamp(max=slots - 1)
        histogram.index_add_(0, index[size > 0], bins.count[size > 0])
        one_sided = min(bins.low, 0.0) == 0 or max(bins.high, 0.0) == 0
        steps = levels if one_sided else max(levels // 2, 1)
        ends = sorted(set(torch.linspace(steps, slots, _THRESHOLDS).long().tolist()))
        losses = [divergence(histogram, end, steps) for end in ends]
        bound = limit * ends[losses.index(min(losses))] / slots
        return torch.tensor(max(bins.low, -bound)), torch.tensor(min(bins.high, bound))


def divergence(histogram: torch.Tensor, end: int, levels: int) -> float:
    """KL(P || Q): P is histogram[:end] with the rest added to its last bin, Q the same in `levels` steps, spread again."""
    true = histogram[:end].clone()
    filled = true > 0
    step = torch.arange(end) * levels // end
    kept = torch.zeros(levels, dtype=torch.float64).index_add_(0, step, true)
    users = torch.zeros(levels, dtype=torch.float64).index_add_(0, step, filled.double())
    approximate = (kept / users.clamp(min=1))[step] * filled
    true[-1] += histogram[end:].sum()
    if true.sum() == 0 or approximate.sum() == 0:
        return float("inf")
    p, q = true / true.sum(), approximate / approximate.sum()
    used = p > 0
    return float((p[used] * (p[used] / q[used].clamp(min=_FLOOR)).log()).sum())
