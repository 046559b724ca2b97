"""The spread of times of equal calls."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Spread:
    """Milliseconds of many equal calls: the median, and what 5 % of the calls were below and above."""

    median: float
    p5: float
    p95: float

    @staticmethod
    def of(seconds: Sequence[float]) -> Spread:
        """Between two calls the quantiles are interpolated."""
        times = sorted(1e3 * one for one in seconds)
        if len(times) < 2:
            return Spread(times[0], times[0], times[0])
        cuts = statistics.quantiles(times, n=20, method="inclusive")
        return Spread(statistics.median(times), cuts[0], cuts[-1])

    def to_data(self) -> dict[str, float]:
        return {name: float(f"{value:.6g}") for name, value in asdict(self).items()}
