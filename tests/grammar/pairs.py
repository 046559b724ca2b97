"""Steps of two values."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.grammar.network import Draw, Step


def two(draw: Draw, x: Tensor, function: Callable[[Tensor, Tensor], Tensor], test: Callable[[Tensor], bool]) -> tuple[Step, Tensor] | None:
    other = draw.like(x, test)
    if other is None:
        return None
    return Step(function.__name__, None, function, (draw.index, other)), function(x, draw.values[other])


PAIRS: tuple[tuple[Callable[[Tensor, Tensor], Tensor], str], ...] = (
    (torch.add, "same"), (lambda a, b: F.relu(a + b), "same"), (torch.mul, "same"), (torch.sub, "same"),
    (lambda a, b: a * torch.sigmoid(b), "same"), (lambda a, b: a + b.mean(-1, keepdim=True), "same"),
    (lambda a, b: torch.where(a > b, a, b), "same"), (torch.maximum, "same"), (lambda a, b: torch.cat([a, b], 1), "but 1"),
    (lambda a, b: torch.cat([b, a, b], -1), "but -1"), (lambda a, b: torch.stack([a, b], 1).mean(1), "same"),
    (lambda a, b: a.clone().add_(b), "same"), (lambda a, b: a / (b.abs() + 1), "same"),
)  # fmt: skip


def pair(draw: Draw, x: Tensor) -> tuple[Step, Tensor] | None:
    function, fits = draw.rng.choice(PAIRS)
    left_out = {"same": None, "but 1": 1, "but -1": x.dim() - 1}[fits]

    def alike(v: Tensor) -> bool:
        return v.dim() == x.dim() and all(v.shape[d] == x.shape[d] for d in range(x.dim()) if d != left_out)

    return two(draw, x, function, alike)
