"""How much of a value 8 bits over its own range would lose."""

from __future__ import annotations

import torch

from qcompiler.observers.base import ObserverBase, finite_range

STEPS = 255


class Vanishing(ObserverBase):
    """Counts the nonzero values that round to zero where each call's whole range has 255 steps, as dynamic kernels have it.

    An observer that gives no qparams, so that its counts go where observers' statistics go.
    """

    gives_qparams = False
    nonzero: torch.Tensor
    lost: torch.Tensor

    def __init__(self) -> None:
        super().__init__(torch.float32)
        self.register_buffer("nonzero", torch.zeros((), dtype=torch.int64))
        self.register_buffer("lost", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x, counted. Raises NumericsError for NaN and inf."""
        size = x.detach().abs()
        if x.numel():
            low, high = (float(end) for end in finite_range(x.detach()))
            half = (max(high, 0.0) - min(low, 0.0)) / STEPS / 2
            self.nonzero += int((size > 0).sum())
            self.lost += int(((size > 0) & (size < half)).sum())
        return x

    @property
    def observed(self) -> bool:
        """Whether there was any value to count."""
        return bool(self.nonzero > 0)

    def merge(self, other: ObserverBase) -> None:
        if not isinstance(other, Vanishing):
            return super().merge(other)
        self.nonzero += other.nonzero.to(self.nonzero.device)
        self.lost += other.lost.to(self.lost.device)

    @property
    def share(self) -> float:
        """Lost ones of the nonzero values, 0 to 1."""
        return float(self.lost) / float(self.nonzero) if self.observed else 0.0
