"""What the codes of a value mean, and a clamp of floats as a clamp of codes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.ops.reference import dequantize, quantize

Bounds = tuple[float | None, float | None] | None


@dataclass(frozen=True)
class Codes:
    """real = scale * (code - zero); codes lie in low..high, within 0..255."""

    scale: float
    zero: int
    low: int
    high: int

    def limits(self, bounds: Bounds) -> tuple[int, int]:
        """The smallest and largest code of a result that is clamped to `bounds` before it is rounded."""
        low, high = bounds or (None, None)
        return (self.low if low is None else int(self.of(torch.tensor(low)))), (
            self.high if high is None else int(self.of(torch.tensor(high)))
        )

    def of(self, x: Tensor) -> Tensor:
        return quantize(x.to(torch.float32), self.scale, self.zero, self.low, self.high, torch.uint8)

    def floats(self) -> Tensor:
        """The real value of each of the 256 codes."""
        return dequantize(torch.arange(256, dtype=torch.int32), self.scale, self.zero)


def same_codes(a: Codes, b: Codes) -> bool:
    """Whether codes of a are codes of b as they stand: on the same steps, and within b's range."""
    return (a.scale, a.zero) == (b.scale, b.zero) and b.low <= a.low <= a.high <= b.high


def requantized(x: Codes, y: Codes) -> Tensor:
    """The table that carries codes from one scale to another."""
    return y.of(x.floats())


def sum_factors(a: Codes, b: Codes, y: Codes, times: tuple[float, float] = (1.0, 1.0)) -> tuple[float, float, float]:
    """ka, kb, kc of y = rne(a * ka + (b * kb + kc)), made in double, for the sum a * times[0] + b * times[1]."""
    own, other = a.scale * times[0], b.scale * times[1]
    return own / y.scale, other / y.scale, (-a.zero * own - b.zero * other) / y.scale


PARTS, MOST_TIMES, MOST_CODES = 64, 2.0, 511.0


def whole_factors(factors: tuple[float, float, float], zero: int) -> tuple[int, int, int] | None:
    """The same as whole numbers of 64ths of a step, for codes less 128; see qc_sum. None where 16 bits do not hold them.

    Half a step less half a 64th stands in front of the rounding down: with half a step sums would be half a 64th too large in the mean,
    in each of a network's residuals.
    """
    ka, kb, kc = factors
    middle = 128 * (ka + kb) + kc + zero
    if not (abs(ka) <= MOST_TIMES and abs(kb) <= MOST_TIMES and abs(middle) <= MOST_CODES):
        return None
    times = 128 * PARTS
    return round(ka * times), round(kb * times), math.floor(middle * PARTS) + PARTS // 2
