"""fuse_fx without example inputs: of models that torch.fx follows without values, the same graph as with any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler as qc
from qcompiler.errors import ConfigError
from qcompiler.quantization import FuseCustomConfig


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.words, self.head = nn.Conv2d(3, 8, 3), nn.Embedding(20, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, ids: Tensor, scale: float = 1.0) -> Tensor:
        return self.head(torch.relu(self.image(x)).mean([2, 3]) * scale + self.words(ids).mean(1))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x if x.dim() == 2 else x.flatten(1))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]]]] = {
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), lambda: (torch.randn(1, 3, 9, 9),)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU6()), lambda: (torch.randn(1, 3, 9),)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2)), lambda: (torch.randn(1, 1, 5, 5, 5),)),
    "a head of fixed size": (
        lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(4 * 32 * 32, 5)),
        lambda: (torch.randn(1, 3, 64, 64),)),
    "a pool that needs room": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(40)), lambda: (torch.randn(1, 3, 99, 99),)),
    "linear": (lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU()), lambda: (torch.randn(3, 5),)),
    "two inputs": (TwoInputs, lambda: (torch.randn(2, 3, 9, 9), torch.randint(0, 20, (2, 7)))),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_is_that_of_any_example(name: str) -> None:
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    model, x = make().eval(), inputs()
    fused = qc.fuse_fx(model)
    assert [str(n.target) for n in fused.graph.nodes] == [str(n.target) for n in qc.fuse_fx(model, x).graph.nodes]
    assert torch.allclose(fused(*x), model(*x), atol=1e-5)
    assert len(fused.graph.nodes) == len(qc.fuse_fx(model, FuseCustomConfig()).graph.nodes)


@pytest.mark.parametrize(
    "model",
    [Branching(), nn.Sequential(nn.ReLU()), nn.Bilinear(3, 4, 5),
     nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2))],
)  # fmt: skip
def test_where_inputs_cannot_be_told_they_have_to_be_given(model: nn.Module) -> None:
    with pytest.raises(ConfigError) as raised:
        qc.fuse_fx(model.eval())
    assert raised.value.code == "example-inputs" and "example_inputs" in str(raised.value.hint)


def test_prepare_needs_inputs() -> None:
    with pytest.raises(qc.InputError, match="example inputs"):
        qc.prepare_fx(nn.Linear(4, 4).eval())
