"""qcompiler.nn.intrinsic: fused float containers compute what the unfused chain computes, and refuse other parts."""

from __future__ import annotations

import copy
import operator
from typing import Any

import pytest
import torch
from torch import nn

import qcompiler
from qcompiler.errors import ConfigError
from qcompiler.nn import intrinsic as nni
from tests.flow import QUANTIZED

CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def conv(dims: int) -> nn.Module:
    return CONVS[dims](4, 6, 3, padding=1)


def norm(dims: int, channels: int) -> nn.Module:
    made = NORMS[dims](channels)
    made.running_mean.uniform_(-1, 1)
    made.running_var.uniform_(0.5, 2)
    return made


def chains() -> dict[str, list[nn.Module]]:
    found: dict[str, list[nn.Module]] = {}
    for d in (1, 2, 3):
        found[f"ConvReLU{d}d"] = [conv(d), nn.ReLU()]
        found[f"ConvBn{d}d"] = [conv(d), norm(d, 6)]
        found[f"ConvBnReLU{d}d"] = [conv(d), norm(d, 6), nn.ReLU()]
    for d in (2, 3):
        found[f"BNReLU{d}d"] = [norm(d, 4), nn.ReLU()]
    found |= {"LinearReLU": [nn.Linear(4, 6), nn.ReLU()], "LinearBn1d": [nn.Linear(4, 6), norm(1, 6)],
              "LinearLeakyReLU": [nn.Linear(4, 6), nn.LeakyReLU(0.2)], "LinearTanh": [nn.Linear(4, 6), nn.Tanh()]}  # fmt: skip
    return found


def shape(name: str) -> tuple[int, ...]:
    return (2, 4) if name.startswith("Linear") else (2, 4, *[5] * int(name[-2]))


@pytest.mark.parametrize("name", sorted(chains()))
@pytest.mark.parametrize("training", [False, True])
def test_equal_to_the_unfused_chain(name: str, training: bool) -> None:
    torch.manual_seed(0)
    parts = chains()[name]
    fused = getattr(nni, name)(*copy.deepcopy(parts)).train(training)
    plain = nn.Sequential(*parts).train(training)
    x = torch.randn(shape(name))
    assert torch.equal(fused(x), plain(x))
    assert fused.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("name", sorted(chains()))
def test_refuses_parts_in_another_order_or_of_a_subclass(name: str) -> None:
    parts = chains()[name]
    cls = getattr(nni, name)
    with pytest.raises(ConfigError, match=f"{name} takes {type(parts[0]).__name__}"):
        cls(*reversed(parts))
    parts[-1].__class__ = type("Mine", (type(parts[-1]),), {})
    with pytest.raises(ConfigError, match="Mine"):
        cls(*parts)


@pytest.mark.parametrize("add", [torch.add, operator.add])
def test_conv_add(add: Any) -> None:
    torch.manual_seed(0)
    one, x, y = nn.Conv2d(4, 6, 1), torch.randn(2, 4, 5, 5), torch.randn(2, 6, 5, 5)
    assert torch.equal(nni.ConvAdd2d(one, add)(x, y), one(x) + y)
    assert torch.equal(nni.ConvAddReLU2d(one, add, nn.ReLU())(x, y), (one(x) + y).relu())
    with pytest.raises(ConfigError, match="ConvAdd2d takes Conv2d, not Linear"):
        nni.ConvAdd2d(nn.Linear(1, 1), add)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nni.ConvBnReLU2d(conv(2), norm(2, 6), nn.ReLU())
        self.sum = nni.ConvAddReLU2d(nn.Conv2d(6, 6, 1), torch.add, nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.sum(x, x)


def test_the_graph_flow_goes_through_them() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    x = torch.randn(2, 4, 6, 6)
    prepared = qcompiler.prepare_fx(model, None, (x,), prepare_custom_config=QUANTIZED)
    assert not any(isinstance(module, nni.FusedModule) for module in prepared.modules())
    qcompiler.calibrate(prepared, [x])
    converted = qcompiler.convert_fx(prepared)
    assert all(row.int8 for row in qcompiler.explain(converted).rows)
    assert (converted(x).dequantize() - model(x)).abs().max() < 0.05 * model(x).abs().max()


def test_scripts_and_counts_as_a_container() -> None:
    fused = nni.ConvReLU2d(conv(2), nn.ReLU()).eval()
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(torch.jit.script(fused)(x), fused(x))
    assert torch.equal(copy.deepcopy(fused)(x), fused(x))
