"""Channels of unlike size that data picks from an int8 value: a remark, where calibration does not give each part a step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import qcompiler as qc
from tests.flow import randn

INDEX = torch.tensor([[7, 0]]).expand(16, 2)
PICKED: dict[str, Callable[[Tensor], Tensor]] = {
    "take_along_dim": lambda y: torch.take_along_dim(y, INDEX, 1),
    "gather": lambda y: torch.gather(y, 1, INDEX),
    "einsum": lambda y: torch.einsum("bc,c->b", y, torch.ones(8)),
    "masked_select": lambda y: y.masked_select(torch.arange(8) > 3),
    "behind a view": lambda y: y.unsqueeze(1).take_along_dim(INDEX[:, None], 2),
}
NOT_PICKED: dict[str, Callable[[Tensor], Tensor]] = {
    "a slice": lambda y: y[:, 4:],
    "chunks": lambda y: y.chunk(2, 1)[1] * 2,
    "all of it": lambda y: y.softmax(1),
}


class Net(nn.Module):
    def __init__(self, reads: Callable[[Tensor], Tensor], small: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.last, self.reads = nn.Linear(8, 8), nn.Linear(2, 2), reads
        self.layer.weight.data[4:] *= small

    def forward(self, x: Tensor) -> Tensor:
        y = self.reads(self.layer(x))
        return self.last(y) if y.shape[-1] == 2 else y


def noted(reads: Callable[[Tensor], Tensor], small: float, engine: str) -> bool:
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"there is no {engine} here")
    made = qc.quantize(Net(reads, small).eval(), [randn(16, 8)], progress=False, engine=engine)
    found = [remark for remark in qc.remarks(made) if remark.code == "picked-rows"]
    assert all("differ by a factor of" in remark.text and remark.node == "layer" for remark in found)
    return bool(found)


@pytest.mark.parametrize("engine", ["onednn", "qnnpack"])
@pytest.mark.parametrize("name", PICKED)
def test_what_is_picked(name: str, engine: str) -> None:
    assert noted(PICKED[name], 0.001, engine)
    assert not noted(PICKED[name], 0.5, engine)


def test_an_int8_gather_on_an_engine_that_hands_out_floats() -> None:
    assert noted(PICKED["gather"], 0.001, "x86")
    assert not noted(PICKED["einsum"], 0.001, "x86")  # it takes the floats


@pytest.mark.parametrize("name", NOT_PICKED)
def test_others(name: str) -> None:
    assert not noted(NOT_PICKED[name], 0.001, "onednn")
