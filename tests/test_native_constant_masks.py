"""Masks that constants make (buffers, literals, what torch folds of them): a native region takes them as it takes those of values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.native.regions import regions_of
from qcompiler.debug import compute_sqnr
from tests.native_nets import converted, example


class Chosen(nn.Module):
    """Two layers, and a choice by a mask between them."""

    def __init__(self, choose: Callable[[Chosen, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.choose = nn.Linear(6, 8), nn.Linear(8, 8), choose
        self.register_buffer("even", torch.arange(8) % 2 == 0)
        self.register_buffer("places", torch.arange(8))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.choose(self, self.first(x)))
        return y


CHOICES: dict[str, Callable[[Chosen, Tensor], Tensor]] = {
    "a buffer": lambda m, y: torch.where(m.even, y, -y),
    "not a buffer": lambda m, y: torch.where(~m.even, y, -y),
    "a comparison of constants": lambda m, y: torch.where(torch.arange(8) < 4, y, -y),
    "a comparison with a buffer": lambda m, y: torch.where(m.places < 4, y, -y),
    "two joined": lambda m, y: torch.where((m.places < 6) & m.even, y, -y),
    "one of two": lambda m, y: torch.where(torch.logical_xor(m.places < 6, m.even), y, -y),
    "a literal": lambda m, y: torch.where(torch.tensor([True, False] * 4), y, 0.5),
    "of a value and a constant": lambda m, y: torch.where((y > 0) & m.even, y, -y),
    "filled": lambda m, y: y.masked_fill(torch.arange(8) < 4, 0.25),
    "put together": lambda m, y: torch.where(torch.cat([m.even[:4], m.even[:4]]), y, -y),
    "of integers": lambda m, y: torch.where((torch.arange(8) % 3).bool(), y, -y),
    "times a value": lambda m, y: y * m.even,
    "added to a value": lambda m, y: y + m.even,
    "in every element": lambda m, y: torch.where(torch.ones_like(y, dtype=torch.bool), y, -y),
    "of one element": lambda m, y: torch.where(m.even.any(), y, -y),
    "of a square": lambda m, y: torch.where(torch.eye(8).bool()[2], y, -y),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_mask_of_constants(name: str, tmp_path: Path) -> None:
    x = example((5, 6))
    module, graph = converted(Chosen(CHOICES[name]).eval(), x)
    assert regions_of(module)
    qcompiler.save(module, tmp_path / "m.qc")
    loaded = qcompiler.load(tmp_path / "m.qc")
    for given in (x, example((2, 6))):
        with torch.no_grad():
            assert compute_sqnr(graph(given), module(given)) > 35 and torch.equal(module(given), loaded(given))
