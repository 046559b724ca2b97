"""Models that were trained for the native back end convert, and compute what training simulated."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler as qc
from qcompiler.config.qconfig import (
    default_per_channel_symmetric_qnnpack_qat_qconfig,
    default_qat_qconfig,
    default_symmetric_qnnpack_qat_qconfig,
)
from qcompiler.debug import compute_sqnr, parity

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")


class Net(nn.Module):
    """A convolution, what follows it, and a linear."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.depthwise, self.up = nn.Conv2d(8, 8, 3, groups=8), nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.between(self, self.norm(self.conv(x)))


NETS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a mean": lambda m, y: m.last(F.relu(y).mean([2, 3])),
    "a pool": lambda m, y: m.last(F.adaptive_avg_pool2d(F.hardswish(y), 1).flatten(1)),
    "copies": lambda m, y: m.last(torch.cat([y, torch.sigmoid(y)], 1)[:, :8].permute(0, 2, 3, 1)),
    "a sum": lambda m, y: m.last((F.relu(y) + F.max_pool2d(y, 3, 1, 1)).mean([2, 3])),
    "windows": lambda m, y: m.last(F.gelu(m.depthwise(F.relu6(y))).flatten(2).mT),
    "a convolution at the end": lambda m, y: m.depthwise(F.relu(y)),
    "a transposed one at the end": lambda m, y: m.up(F.silu(y)),
    "floats at the end": lambda m, y: torch.tanh(m.last(y.mean([2, 3]))) * 3,
}
QCONFIGS = {"default": None, "by tensor": default_qat_qconfig, "symmetric": default_symmetric_qnnpack_qat_qconfig}


def trained(net: nn.Module, qconfig: Any, *shape: int) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(shape)
    prepared = qc.prepare_qat_fx(net.train(), qconfig, (x,), backend="native")
    optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        result = prepared(torch.randn(shape))
        sum(y.square().mean() for y in (result if isinstance(result, tuple) else (result,))).backward()
        optimizer.step()
    return prepared, x


@pytest.mark.parametrize("qconfig", QCONFIGS)
@pytest.mark.parametrize("name", NETS)
def test_what_training_simulated(name: str, qconfig: str) -> None:
    if qconfig != "default" and name not in ("a mean", "windows"):
        return
    torch.manual_seed(0)
    prepared, x = trained(Net(NETS[name]), QCONFIGS[qconfig], 4, 3, 8, 8)
    module = qc.convert_fx(prepared)
    prepared.eval()
    assert parity(prepared, module, [x]).holds
    with torch.no_grad():
        assert compute_sqnr(prepared(x), module(x)) > 25  # calls in eval mode move its ranges a little


@pytest.mark.parametrize("seed", range(2))
def test_a_step_inside_of_a_region_counts_where_it_happens(seed: int) -> None:
    """A mean at a half step falls to the other side: one step there, and nothing behind it, which the C computes from its own value."""

    def between(m: Any, y: Tensor) -> Tensor:
        y = F.hardswish(F.relu(y) + F.max_pool2d(y, 3, 1, 1))
        return m.last(torch.cat([y, torch.sigmoid(y)], 1)[:, :8].mean([2, 3]))  # type: ignore[no-any-return]

    torch.manual_seed(seed)
    prepared, x = trained(Net(between), default_per_channel_symmetric_qnnpack_qat_qconfig, 8, 3, 8, 8)
    module = qc.convert_fx(prepared)
    found = parity(prepared, module, [x])
    assert found.holds and [d.is_float for d in found.differences].count(False) > 1


def test_a_lone_linear_and_what_is_wrong_in_it() -> None:
    prepared, x = trained(nn.Sequential(nn.Linear(8, 8)), None, 8, 8)
    module = qc.convert_fx(prepared)
    assert compute_sqnr(prepared.eval()(x), module(x)) > 40
    with torch.no_grad():
        prepared.get_parameter("0.weight").mul_(1.05)  # behind the conversion
    assert not parity(prepared, module, [x]).holds


class Through(nn.Module):
    """Three linears, and what is computed with them around an op that C does not have."""

    def __init__(self, computed: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
        self.computed = computed

    def forward(self, x: Tensor) -> Any:
        return self.computed(self, x)


def read_as_floats_too(m: Any, x: Tensor, joined: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Any:
    """Floats of torch that an int8 linear rounds, and that are read as they are: beside what int8 ops round."""
    h, u = torch.logcumsumexp(x, 1), m.b(x).tanh()
    return joined(m.a(h), h, u), m.c(u)


def codes_for_another_region(m: Any, x: Tensor, change: Callable[[Tensor], Tensor]) -> Any:
    """Codes that one region hands out, of floats that an int8 linear hands out, in front of what torch computes."""
    r = x.relu()
    y, c = change(torch.where(r > 0.3, m.a(r), r)).mean(1), r.clone()
    c[:, 0] = r[:, 0] * 0.5
    return m.b(y) + c[:, 0]


BETWEEN_REGIONS: dict[str, Callable[[Any, Tensor], Any]] = {
    "floats times codes": lambda m, x: read_as_floats_too(m, x, lambda a, h, u: a * u + h),
    "floats and codes in a cat": lambda m, x: read_as_floats_too(m, x, lambda a, h, u: torch.cat([a, h, u], 1)),
    "floats normalized": lambda m, x: read_as_floats_too(m, x, lambda a, h, u: F.layer_norm(a + h * u, (8,))),
    "codes of a mean": lambda m, x: codes_for_another_region(m, x, lambda y: y),
    "codes of a function": lambda m, x: codes_for_another_region(m, x, lambda y: torch.exp(-y * y)),
}


@pytest.mark.parametrize("case", BETWEEN_REGIONS)
def test_values_between_regions_are_compared_as_they_are_held(case: str) -> None:
    """A region may round what it takes as floats in itself alone, and codes that it hands out are floats a step apart."""
    prepared, x = trained(Through(BETWEEN_REGIONS[case]), None, 2, 3, 8)
    prepared.eval()
    module = qc.convert_fx(prepared)  # raises where it does not compute what training simulated
    found = parity(prepared, module, [x])
    assert found.holds and max(d.worst for d in found.differences if d.is_float) < 1e-5


BEHIND_RECURRENT: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a product": lambda m, y: torch.einsum("ntc,ntc->nt", m.linear(y), y),
    "a residual": lambda m, y: m.linear(y) + y,
    "a mean": lambda m, y: (m.linear(y) * torch.log1p(y.abs())).mean(-1),
}


@pytest.mark.parametrize("case", BEHIND_RECURRENT)
@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_what_training_did_not_simulate_is_told_of_all_that_reads_it(layer: Any, case: str) -> None:
    """A recurrent layer rounds at run time alone. What reads it rounded and unrounded is computed from it again, not from what was held."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.linear = layer(8, 8, batch_first=True), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return BEHIND_RECURRENT[case](self, self.layer(x)[0].tanh())

    prepared, x = trained(Net(), None, 2, 5, 8)
    prepared.eval()
    module = qc.convert_fx(prepared)  # raises where it does not compute what training simulated
    found = parity(prepared, module, [x])
    assert found.holds and not all(d.simulated for d in found.differences)
