"""Training for the native back end: its regions compute what the simulation did, and what they do otherwise is seen."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.native.region import NativeRegion
from qcompiler.debug import parity
from tests.flow import randn

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


class Net(nn.Module):
    """A step between layers, whose C computes several values in one go."""

    def __init__(self, step: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last, self.step = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8), step
        self.layer = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self, x)


STEPS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "floats at once": lambda net, x: net.last(F.silu(x)),
    "a norm": lambda net, x: net.last(net.norm(x)),
    "codes": lambda net, x: net.last(net.norm(net.first(x))),
    "a table in the epilogue": lambda net, x: net.last(F.silu(net.first(x))),
    "a steep table": lambda net, x: net.last(torch.sigmoid(8 * net.first(x))),
    "floats between": lambda net, x: net.last(net.norm(F.elu(net.first(x)))),
    "a sum in the epilogue": lambda net, x: net.last(F.relu(net.first(x) + x)),
    "two operands": lambda net, x: net.last(torch.maximum(net.first(x), -net.first(x))),
    "a result": lambda net, x: x + net.last(net.norm(x)),
    "a dynamic layer between": lambda net, x: net.last(net.layer(x[None])[0][0]) + net.layer(x[None])[0][0],
    "read before its rounding, too": lambda net, x: net.last(v := x / (1 + x.abs())) * 0.5 + v,
    "two of them": lambda net, x: net.last(w := F.elu(net.norm(v := F.elu(net.first(x))))) + v * w + F.elu(w),
    "rounded again outside": lambda net, x: net.last(v := net.first(x)) - v[v >= v.mean()].max(),
    "softmax": lambda net, x: net.last(net.first(x).softmax(-1)),
}


def trained(name: str) -> tuple[Any, nn.Module, Tensor]:
    x = randn(16, 8)
    prepared = qcompiler.prepare_qat_fx(Net(STEPS[name]).train(), None, (x,), backend="native")
    prepared(x).square().mean().backward()
    return prepared, qcompiler.convert_fx(prepared), x


@pytest.mark.parametrize("name", STEPS)
def test_convert_finds_what_training_simulated(name: str) -> None:
    prepared, module, x = trained(name)
    names = [step.name for step in module._steps().steps]  # type: ignore[operator]
    assert len(names) == len(set(names))  # two of one name would stand for each other
    found = parity(prepared, module, [x, randn(5, 8, seed=3)])
    assert found.holds and found.worst <= 1, found
    assert any(not difference.is_float for difference in found.differences)  # values inside are compared in steps


@pytest.mark.parametrize("name", [name for name in STEPS if "dynamic" not in name])  # training does not simulate its rounding
def test_what_the_c_computes_otherwise_is_seen(name: str) -> None:
    """Codes that are four steps off, of the value that the last layer takes."""
    prepared, module, x = trained(name)
    watch = NativeRegion.watch

    def spoiled(region: NativeRegion, *inputs: Tensor) -> dict[str, Tensor]:
        seen = watch(region, *inputs)
        last = [n for n in region.places if n in seen and region.network.codes.get(n) is not None][-1]
        codes = seen[last].short()
        return {**seen, last: torch.where(codes > 127, codes - 4, codes + 4).to(seen[last].dtype)}

    with mock.patch.object(NativeRegion, "watch", spoiled):
        found = parity(prepared, module, [x])
    assert not found.holds, found


def test_what_a_region_runs_on_is_kept_until_it_runs() -> None:
    """Its values depend on some of its inputs each; the run needs them all, whatever reads them last."""
    _, module, _ = trained("a dynamic layer between")
    runs = [step for step in module._steps().steps if step.takes]  # type: ignore[operator]
    read = {name for step in module._steps().steps for name in step.inputs if "." not in name}  # type: ignore[operator]
    assert (
        runs
        and all(set(step.inputs) <= set(step.takes) for step in runs)
        and {"x"} <= {n for step in runs for n in step.takes} <= read | {"x"}
    )
