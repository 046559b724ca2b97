"""How small the rows of a value are that a normalization brings to one size: the smallest, and all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from qcompiler.observers.base import ObserverBase

PER_OCTAVE, OCTAVES, LOWEST = 2, 128, -96  # bins of powers; half an octave is 1.5 dB


class SmallestRow(ObserverBase):
    """The least mean square of a row, as `power(x, attributes)` gives it for each. An observer that gives no qparams.

    `counts`: how many rows of each size there were.
    """

    gives_qparams = False
    least: Tensor
    counts: Tensor

    def __init__(self, power: Callable[[Tensor, Mapping[str, Any]], Tensor], attributes: Mapping[str, object]) -> None:
        super().__init__(torch.float32)
        self.power, self.attributes = power, dict(attributes)
        self.register_buffer("least", torch.tensor(math.inf))
        self.register_buffer("counts", torch.zeros(PER_OCTAVE * OCTAVES, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """x, looked at."""
        if x.numel():
            power = self.power(x.detach(), self.attributes)
            self.least = torch.minimum(self.least, power.min().to(self.least))
            places = ((power.flatten().log2() - LOWEST) * PER_OCTAVE).long().clamp(0, len(self.counts) - 1)
            self.counts = self.counts + torch.bincount(places, minlength=len(self.counts)).to(self.counts)
        return x

    @property
    def observed(self) -> bool:
        """Whether there was any row."""
        return math.isfinite(float(self.least))

    def noise(self, power: float) -> float:
        """What noise of this power is behind the normalization, whose result has power 1, over all rows; a row is lost at most once."""
        middles = 2.0 ** ((torch.arange(len(self.counts), dtype=torch.float64) + 0.5) / PER_OCTAVE + LOWEST)
        counts = self.counts.cpu()
        return float(((power / middles).clamp(max=1) * counts).sum() / counts.sum())

    def merge(self, other: ObserverBase) -> None:
        if not isinstance(other, SmallestRow):
            return super().merge(other)
        self.least = torch.minimum(self.least, other.least.to(self.least))
        self.counts = self.counts + other.counts.to(self.counts)
