"""Corrections and the search on inputs with infinite numbers: a mask of 0 and -inf is data, a NaN is an error that names the batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, fx, nn

from qcompiler import CalibrationError, autotune, calibrate, convert_fx, prepare_fx
from qcompiler.tune import correct_bias, equalize, fit_ranges, reconstruct, scale_inputs

EACH = {"equalize": equalize, "scale_inputs": scale_inputs, "fit_ranges": fit_ranges, "reconstruct": reconstruct,
        "correct_bias": correct_bias}  # fmt: skip


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.o, self.norm = *(nn.Linear(16, 16) for _ in range(4)), nn.LayerNorm(16)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        a = (self.q(x) @ self.k(x).transpose(1, 2) / 4 + mask).softmax(-1)
        y: Tensor = self.norm(x + self.o(a @ self.v(x)))
        return y


def batches(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(2, 5, 5)
    mask[:, :, 3:] = -math.inf
    return [(torch.randn(2, 5, 16, generator=generator), mask) for _ in range(count)]


@pytest.fixture(scope="module")
def prepared() -> fx.GraphModule:
    made = prepare_fx(Attention().eval(), None, batches(1)[0])
    calibrate(made, batches(), progress=False)
    return made


@pytest.mark.parametrize("name", EACH)
def test_a_mask_of_infinite_numbers(prepared: fx.GraphModule, name: str) -> None:
    found = EACH[name](prepared, batches())  # type: ignore[operator]
    x, mask = batches(1)[0]
    assert bool(convert_fx(prepared, corrections=found)(x, mask).isfinite().all())


@pytest.mark.parametrize("name", [name for name in EACH if name != "equalize"])  # which finds nothing here, and looks at no data
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_rounded_has_finite_numbers(prepared: fx.GraphModule, name: str, value: float) -> None:
    data = [*batches(2), (torch.full((2, 5, 16), value), batches(1)[0][1])]
    with pytest.raises(CalibrationError, match="batch 2: NaN or inf in x"):
        EACH[name](prepared, data)  # type: ignore[operator]


def test_the_search_takes_masks() -> None:
    found = autotune(Attention().eval(), batches(), progress=False, seconds=600)
    assert all(row.score is None or math.isfinite(row.score.sqnr) for row in found.table)


@pytest.mark.parametrize("place", range(4))
def test_a_nan_is_named_before_any_work(place: int) -> None:
    """By its place in the data, whether it is held out or not."""
    data = batches(4)
    data[place] = (torch.full((2, 5, 16), math.nan), data[place][1])
    with pytest.raises(CalibrationError, match=f"batch {place}: NaN"):
        autotune(Attention().eval(), data, progress=False)
