"""Channels that are divided by constants of unlike size: each keeps the accuracy that it has by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import qcompiler as qc
from tests.flow import ENGINES

Spread = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """A linear whose channels are of unlike size, what brings them to one, and a linear that reads them."""

    def __init__(self, between: Spread, decades: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.between = nn.Linear(8, 16, bias=False), nn.Linear(16, 8), between
        self.register_buffer("mean", torch.randn(16))
        self.register_buffer("var", 10.0 ** torch.linspace(-decades, decades, 16))
        with torch.no_grad():
            self.first.weight.mul_(self.var.sqrt()[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.first(x)))


BETWEEN: dict[str, Spread] = {
    "at once": lambda s, y: y / (s.var**0.5 + 1e-8),
    "a buffer": lambda s, y: y / s.var,
    "behind a difference": lambda s, y: (y - s.mean) / s.var.sqrt(),
    "behind copies": lambda s, y: (y.flip(1)[:, torch.arange(15, -1, -1)] - s.mean) / s.var.sqrt(),
}


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("between", ["at once", "a buffer", "behind a difference"])
def test_behind_a_linear_they_are_part_of_its_weight(between: str, backend: str) -> None:
    model, x = Net(BETWEEN[between], 1.5).eval(), torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    module = qc.quantize(model, [x], progress=False, backend=backend)
    assert [(row.op, row.int8) for row in qc.explain(module).rows if row.op in ("linear", "div", "sub")] == [("linear", True)] * 2
    with torch.no_grad():
        assert float(qc.debug.compute_sqnr(model(x), module(x))) > 30


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_they_are_float(backend: str) -> None:
    between = BETWEEN["behind copies"]
    model, x = Net(between, 1.5).eval(), torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    module = qc.quantize(model, [x], progress=False, backend=backend)
    (quotient,) = [row for row in qc.explain(module).rows if row.op == "div"]
    assert (quotient.int8, quotient.code) == (False, "unlike-divisors")
    assert all(row.int8 for row in qc.explain(module).rows if row.op == "linear")
    with torch.no_grad():
        assert float(qc.debug.compute_sqnr(model(x), module(x))) > 30  # two linears of 8 bits leave about 40; a common step 5 to 20


def test_divisors_of_like_size_are_int8() -> None:
    model, x = Net(BETWEEN["behind copies"], 0.5).eval(), torch.randn(64, 8)
    module = qc.quantize(model, [x], progress=False, engine=ENGINES[0])
    assert all(row.int8 for row in qc.explain(module).rows if row.op == "div")
