"""Models that draw random numbers in eval mode: what is drawn anew by each run is compared with nothing, all else is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from qcompiler import debug
from qcompiler.debug.walk import RANDOM
from tests.flow import randn

DRAWN: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.5, training=True),
    "dropout2d": lambda x: F.dropout2d(x, 0.5, training=True),
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "noise": lambda x: x + torch.rand_like(x),
    "a mask": lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
}


class Net(nn.Module):
    def __init__(self, drawn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.drawn, self.last = nn.Conv2d(3, 8, 3), drawn, nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drawn(torch.relu(self.first(x))))


@pytest.mark.parametrize("name", DRAWN)
def test_a_trained_model_converts(name: str) -> None:
    torch.manual_seed(0)
    x = randn(2, 3, 12, 12)
    prepared = qcompiler.prepare_qat_fx(Net(DRAWN[name]).train(), None, (x,))
    prepared(x)
    converted = qcompiler.convert_fx(prepared.eval())
    assert not torch.equal(converted(x), converted(x))
    found = debug.parity(prepared, converted, [x])
    assert found.holds and RANDOM in dict(found.unmatched).values()
    assert {"first", "last"} <= {difference.module_path for difference in found.differences}


@pytest.mark.parametrize("name", DRAWN)
def test_compare_tells_no_error_of_what_is_drawn(name: str) -> None:
    torch.manual_seed(0)
    x, model = randn(2, 3, 12, 12), Net(DRAWN[name]).eval()
    found = debug.compare(model, qcompiler.quantize(model, [x], progress=False), [x])
    assert RANDOM in dict(found.unmatched).values()
    assert found["last"].own > 25  # dB: that of 8 bits, on equal inputs
