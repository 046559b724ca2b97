"""Training on real data, in both flows: what examples/qat_digits.py shows, with fewer epochs, and the same network by hand."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.nn.quantized import FloatFunctional
from qcompiler.quantization import DeQuantStub, QuantStub, convert, disable_observer, fuse_modules_qat, get_default_qat_qconfig, prepare_qat
from tests.test_eager_qat_parity import worst_steps

CHAINS = [["stem.0", "stem.1", "stem.2"], ["depthwise.0", "depthwise.1", "depthwise.2"], ["point.0", "point.1"],
          ["down.0", "down.1", "down.2"]]  # fmt: skip


@pytest.fixture(scope="module")
def example() -> Any:
    pytest.importorskip("sklearn")
    path = Path(__file__).resolve().parent.parent / "examples" / "qat_digits.py"
    spec = importlib.util.spec_from_file_location("qat_digits", path)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network(example: Any) -> nn.Module:
    model: nn.Module = example.trained(quick=True)
    return model


@pytest.fixture(scope="module")
def found(example: Any, network: nn.Module) -> dict[str, float]:
    accuracies: dict[str, float] = example.compare(network, quick=True)
    return accuracies


def test_float_is_a_trained_network(found: dict[str, float]) -> None:
    assert found["float"] > 97


def test_eight_bits_cost_half_a_point_at_most(found: dict[str, float]) -> None:
    assert found["qat8"] >= found["float"] - 0.5


def test_at_four_bits_training_wins_over_calibration(found: dict[str, float]) -> None:
    assert found["qat4"] > found["ptq4"]
    assert found["qat4"] >= found["float"] - 1


@pytest.mark.parametrize("bits", [8, 4])
def test_int8_is_the_fake_quantized_network_on_every_image(found: dict[str, float], bits: int) -> None:
    assert found[f"same{bits}"] == 100.0
    assert found[f"steps{bits}"] <= 1


class ByHand(nn.Module):
    """The trained network with stubs, and its sum as a module."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.quant, self.dequant, self.sum = QuantStub(), DeQuantStub(), FloatFunctional()
        for name, child in copy.deepcopy(network).named_children():
            setattr(self, name, child)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.quant(x))
        x = self.sum.add_relu(x, self.point(self.depthwise(x)))
        return self.dequant(self.head(F.avg_pool2d(self.down(x), 2).flatten(1)))


def test_the_eager_flow_keeps_the_same_promises(example: Any, network: nn.Module, found: dict[str, float]) -> None:
    images, labels, test_images, test_labels = example.data()
    model = fuse_modules_qat(ByHand(network).train(), CHAINS)
    model.qconfig = get_default_qat_qconfig("x86")
    prepared = prepare_qat(model)
    example.train(prepared, images, labels, epochs=3, rate=0.01)
    prepared.eval().apply(disable_observer)
    converted = convert(prepared)
    assert example.accuracy(converted, test_images, test_labels) >= found["float"] - 0.5
    with torch.no_grad():
        assert torch.equal(prepared(test_images).argmax(1), converted(test_images).argmax(1))
    steps = worst_steps(prepared, converted, test_images)
    assert len(steps) >= 7 and max(steps.values()) <= 1, steps
