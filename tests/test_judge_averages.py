"""Means of many values: they share their input's scale unless that would lose them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.compile.gate import Gate, gated
from qcompiler.config.custom_config import PrepareCustomConfig
from qcompiler.debug import compute_sqnr
from qcompiler.ir.types import quant_of
from qcompiler.ops.averages import averages_many
from qcompiler.ops.reference import quantize
from qcompiler.ops.table import OPS
from tests.flow import ENGINES, flow, randn

DUE = 25.0  # dB; on the input's scale 0 to 9


class Pooled(nn.Module):
    """A convolution of both signs around `centre`, a mean of its plane, and a linear layer."""

    def __init__(self, pool: Callable[[Tensor], Tensor], dims: int = 2, centre: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](4, 8, 1)
        self.pool, self.fc = pool, nn.Linear(8, 4, bias=False)
        with torch.no_grad():
            self.conv.bias.copy_(torch.full((8,), centre) + torch.arange(8) * 0.01)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return self.fc(self.pool(y).flatten(1)), torch.relu(y)


def centred(dims: int, batch: int = 4) -> Tensor:
    """Values whose mean over the plane is nearly nothing."""
    x = randn(batch, 4, *(256, (16, 16), (8, 8, 4))[dims - 1] if dims > 1 else (256,))
    spatial = tuple(range(2, 2 + dims))
    return x - x.mean(spatial, keepdim=True) + randn(batch, 4, *(1,) * dims, seed=1) * 0.02


POOLS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "mean": (lambda y: y.mean((2, 3)), 2),
    "torch.mean": (lambda y: torch.mean(y, (2, 3), keepdim=True), 2),
    "mean of one dimension": (lambda y: y.mean(-1), 1),
    "adaptive 1d": (nn.AdaptiveAvgPool1d(1), 1),
    "adaptive 2d": (nn.AdaptiveAvgPool2d(1), 2),
    "adaptive 3d": (nn.AdaptiveAvgPool3d(1), 3),
    "avg_pool1d": (nn.AvgPool1d(256), 1),
    "avg_pool2d": (nn.AvgPool2d(16), 2),
    "avg_pool3d": (nn.AvgPool3d((8, 8, 4)), 3),
}


def rows(module: nn.Module) -> list[Any]:
    return [row for row in qcompiler.explain(module).rows if "mean" in row.op or "pool" in row.op]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pool", POOLS)
def test_a_mean_of_values_that_cancel_has_its_own_scale(pool: str, engine: str) -> None:
    make, dims = POOLS[pool]
    model, x = Pooled(make, dims).eval(), centred(dims)
    module = qcompiler.quantize(model, [x], engine=engine, progress=False)
    assert [(row.int8, row.code) for row in rows(module)] == [(False, "lost-average")]
    assert float(compute_sqnr(model(x)[0], module(x)[0])) > DUE
    assert all(row.int8 for row in qcompiler.explain(module).rows if row.op in ("linear", f"conv{dims}d"))
    assert torch.equal(torch.jit.script(module)(x)[0], module(x)[0])


@pytest.mark.parametrize("pool", POOLS)
def test_other_means_have_the_scale_of_their_input(pool: str) -> None:
    make, dims = POOLS[pool]
    model, x = Pooled(make, dims, centre=2.0).eval(), centred(dims)
    found = flow(model, [x])
    assert all(row.int8 for row in rows(found.module))
    scales = {n.args[1] for n in found.reference.graph.nodes if n.target is quantize and "conv" not in n.name and n.name != "x_q"}
    of_conv = {n.args[1] for n in found.reference.graph.nodes if n.target is quantize and n.name == "conv_q"}
    assert of_conv <= scales  # the pool's is the convolution's
    assert float(compute_sqnr(model(x)[0], found.module(x)[0])) > DUE


def test_a_mean_of_few_values_is_not_looked_at() -> None:
    prepared = qcompiler.prepare_fx(Pooled(nn.AvgPool2d(2)).eval(), None, (randn(1, 4, 2, 2),))
    assert not any(averages_many(n, OPS) for n in prepared.graph.nodes)
    assert len({quant_of(n).group for n in prepared.graph.nodes if n.name in ("conv", "pool")}) == 1


def test_what_the_caller_wants_quantized_is_int8() -> None:
    class Result(Pooled):
        def forward(self, x: Tensor) -> Any:
            return self.pool(self.conv(x))

    model, x = Result(nn.AdaptiveAvgPool2d(1)).eval(), centred(2)
    prepared = qcompiler.prepare_fx(model, None, (x,), prepare_custom_config=PrepareCustomConfig().set_output_quantized_indexes([0]))
    qcompiler.calibrate(prepared, [x])
    assert rows(qcompiler.convert_fx(prepared))[0].int8


@pytest.mark.parametrize("engine", ENGINES)
def test_held_back_it_is_right_all_the_same(engine: str) -> None:
    model, x = Pooled(nn.AdaptiveAvgPool2d(1)).eval(), centred(2)
    with gated(Gate(limit=0)):
        module = qcompiler.quantize(model, [x], engine=engine, progress=False)
    assert all(row.int8 for row in rows(module)) and float(compute_sqnr(model(x)[1], module(x)[1])) > DUE
    assert float(compute_sqnr(model(x)[0], module(x)[0])) < 15


@pytest.mark.parametrize("engine", ["x86", "fbgemm"])
def test_7_bits_of_a_mean_that_a_linear_reads_are_those_of_its_input(engine: str) -> None:
    """Without VNNI a linear's 16-bit sums hold 7-bit inputs; the mean that it reads takes the codes of the convolution."""
    model, x = Pooled(nn.AdaptiveAvgPool2d(1), centre=2.0).eval(), centred(2)
    prepared = qcompiler.prepare_fx(model, None, (x,), engine=engine, isa="avx2")
    qcompiler.calibrate(prepared, [x])
    ends = {n.name: n.args[4] for n in qcompiler.convert_to_reference_fx(prepared).graph.nodes if n.target is quantize}
    assert ends["conv_q"] == ends["pool_q"] == 127, ends


def test_the_mean_of_an_empty_part_has_the_range_of_the_whole() -> None:
    """Calibration with shorter inputs than the example leaves a part without data: no error, the whole's qparams."""

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two, self.a, self.b = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.one(x) + self.two(x)
            return self.a(y[:, :4]), self.b(y[:, 4:])

    model, x = Cut().eval(), randn(2, 6, 8)
    prepared = qcompiler.prepare_fx(model, None, (x,))
    qcompiler.calibrate(prepared, [x[:, :4]])
    module = qcompiler.convert_fx(prepared)
    for expected, found in zip(model(x), module(x), strict=True):
        assert float(compute_sqnr(expected, found)) > 20
