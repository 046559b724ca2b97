"""Where memory is short, every public function says so in one error, whichever part of it met the shortage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler import OutOfMemoryError, quantization

X = torch.randn(2, 8)
HUGE = 1 << 50  # elements: more than any machine can address


class Net(nn.Module):
    """Takes more memory than there is where its examples have three rows."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.quant, self.l, self.dequant, self.way = quantization.QuantStub(), nn.Linear(8, 8), quantization.DeQuantStub(), way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.dequant(self.l(self.quant(x)))
        if x.shape[0] != 3:
            return y
        if self.way == "python":
            raise MemoryError
        return y + torch.zeros(HUGE) if self.way == "constant" else y.repeat(HUGE, 1)


def _calibrate(net: nn.Module) -> None:
    prepared = qc.prepare_fx(net, None, (X,))
    prepared.register_forward_hook(lambda *_: torch.zeros(HUGE))
    qc.calibrate(prepared, [X])


def _eager(net: nn.Module) -> None:
    net.qconfig = quantization.get_default_qconfig("x86")  # type: ignore[assignment]
    quantization.quantize(net, lambda model: model(torch.randn(3, 8)), ())


DOORS: dict[str, Callable[[nn.Module], Any]] = {
    "quantize": lambda net: qc.quantize(net, [torch.randn(3, 8)], progress=False),
    "prepare_fx": lambda net: qc.prepare_fx(net, None, (torch.randn(3, 8),)),
    "fuse_fx": lambda net: qc.fuse_fx(net, (torch.randn(3, 8),)),
    "eager quantize": _eager,
}


@pytest.mark.parametrize("way", ["python", "constant", "op"])
@pytest.mark.parametrize("door", DOORS)
def test_one_error_says_so(door: str, way: str) -> None:
    with pytest.raises(OutOfMemoryError, match="not enough memory") as caught:
        DOORS[door](Net(way).eval())
    assert caught.value.code == "out-of-memory" and caught.value.hint and isinstance(caught.value, MemoryError)
    assert way == "python" or "GiB" in caught.value.message


def test_while_calibrating() -> None:
    with pytest.raises(OutOfMemoryError):
        _calibrate(Net("op").eval())


def test_other_errors_are_what_they_were() -> None:
    with pytest.raises(qc.InputError):
        qc.quantize(Net("op").eval(), [torch.randn(2, 9)], progress=False)
