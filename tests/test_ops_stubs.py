"""Models that were edited for torch's eager flow: stubs and FloatFunctional vanish, and the rest is int8 as in the plain model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional, FXFloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub, QuantWrapper

from qcompiler import explain
from qcompiler.debug import compute_sqnr
from qcompiler.vision import import_torchvision
from tests.flow import QUANTIZED, flow, randn, randomized


class Edited(nn.Module):
    def __init__(self, functional: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quant, self.dequant, self.f = QuantStub(), DeQuantStub(), functional
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.quant(x)
        y = self.f.add_relu(self.a(x), self.b(x))
        y = self.f.mul_scalar(self.f.add_scalar(self.f.mul(y, self.f.add(y, x)), 0.5), 2.0)
        return self.dequant(self.f.cat([y, x], 1))


@pytest.mark.parametrize("functional", [FloatFunctional, FXFloatFunctional])
def test_stubs_vanish(functional: type[nn.Module]) -> None:
    model, x = Edited(functional()).eval(), randn(2, 4, 6, 6)
    module = flow(model, (x,), prepare_custom_config=QUANTIZED).module
    assert all(row.int8 for row in explain(module).rows)
    assert {name.partition(".")[0] for name, _ in module.named_modules()} <= {"", "a", "b"}
    with torch.no_grad():
        assert compute_sqnr(model(x), module(x).dequantize()) > 28


def test_a_wrapped_model() -> None:
    torch.manual_seed(0)
    plain, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), randn(5, 4)
    assert torch.equal(flow(QuantWrapper(plain).eval(), (x,)).module(x), flow(plain, (x,)).module(x))


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_torchvisions_quantizable_models_are_as_the_plain_ones(name: str) -> None:
    torchvision = import_torchvision()
    torch.manual_seed(0)
    edited = randomized(getattr(torchvision.models.quantization, name)(weights=None, quantize=False))
    plain = getattr(torchvision.models, name)(weights=None).eval()
    plain.load_state_dict(edited.state_dict())
    x = randn(2, 3, 64, 64)
    first, second = (flow(model, (x,)).module for model in (edited, plain))
    assert torch.equal(first(x), second(x))
    assert all(row.int8 for row in explain(first).rows)
    assert not [path for path, _ in first.named_modules() if path.rpartition(".")[2] in ("quant", "dequant", "skip_add", "add_relu")]
