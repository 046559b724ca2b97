"""How small the smallest row of a value is that a normalization brings to one size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from qcompiler.observers.base import ObserverBase


class SmallestRow(ObserverBase):
    """The least mean square of a row, as `power(x, attributes)` gives it for each. An observer that gives no qparams."""

    gives_qparams = False
    least: Tensor

    def __init__(self, power: Callable[[Tensor, Mapping[str, Any]], Tensor], attributes: Mapping[str, object]) -> None:
        super().__init__(torch.float32)
        self.power, self.attributes = power, dict(attributes)
        self.register_buffer("least", torch.tensor(math.inf))

    def forward(self, x: Tensor) -> Tensor:
        """x, looked at."""
        if x.numel():
            self.least = torch.minimum(self.least, self.power(x.detach(), self.attributes).min().to(self.least))
        return x

    @property
    def observed(self) -> bool:
        """Whether there was any row."""
        return math.isfinite(float(self.least))

    def merge(self, other: ObserverBase) -> None:
        if not isinstance(other, SmallestRow):
            return super().merge(other)
        self.least = torch.minimum(self.least, other.least.to(self.least))
