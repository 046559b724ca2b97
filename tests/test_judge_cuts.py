"""An op that keeps a small part of a value's range: the value is float where its steps would leave too little, int8 elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from qcompiler.compile.gate import Gate, gated
from qcompiler.config.custom_config import PrepareCustomConfig
from qcompiler.debug import compute_sqnr
from qcompiler.ir.types import quant_of
from qcompiler.ops.reference import quantize
from tests.flow import flow, randn

DUE = 25.0  # dB of each result
LESS = 4.0  # dB at least that the first has behind int8 values
TARGETS: tuple[dict[str, Any], ...] = ({"engine": "x86"}, {"engine": "onednn"}, {"engine": "qnnpack"}, {"backend": "native"})


class Cut(nn.Module):
    """A wide value, of which one layer reads what `cut` keeps, and another all."""

    def __init__(self, cut: Callable[[Tensor], Tensor], wide: Callable[[Tensor], Tensor] = lambda y: y * y * 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Conv1d(8, 8, 1) for _ in range(3))
        self.cut, self.wide = cut, wide
        self.register_buffer("most", torch.tensor(1.5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.wide(self.a(x))
        kept = self.cut(torch.minimum(y, self.most)) if self.cut is minimum else self.cut(y)
        return self.b(kept), self.c(y)


def minimum(y: Tensor) -> Tensor:
    """Behind a minimum with a buffer."""
    return y


CUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda y: y.clamp(-1, 1.5),
    "torch.clamp": lambda y: torch.clamp(y, max=1.5),
    "clip": lambda y: y.clip(0, 1.5),
    "clamp_max": lambda y: torch.clamp_max(y, 2),
    "away from zero": lambda y: y.clamp(0.5, 1.5),
    "relu6": F.relu6,
    "ReLU6": nn.ReLU6(),
    "hardtanh": F.hardtanh,
    "Hardtanh": nn.Hardtanh(-1, 2),
    "minimum": minimum,
    "minimum of two": lambda y: torch.minimum(y, (y * 0.01).add(0.5)),
    "maximum": lambda y: torch.maximum(-y, torch.full_like(y, -1.5)),
    "relu": lambda y: torch.relu(2 - y),
    "ReLU": lambda y: nn.ReLU()(2 - y),
    "threshold": lambda y: F.threshold(2 - y, 0.1, 0.0),
    "leaky_relu": lambda y: F.leaky_relu(2 - y, 0.001),
    "elu": lambda y: F.elu(2 - y),
    "gelu": lambda y: F.gelu(2 - y),
    "copies": lambda y: y.unsqueeze(1).flip(-1).squeeze(1).clamp(0, 1),
    "pool": lambda y: F.max_pool1d(y, 1).clamp(0, 1),
    "number": lambda y: (y * 2 + 1).clamp(0, 3),
    "sum": lambda y: (y + y.flip(-1)).clamp(0, 2),
    "twice": lambda y: y.clamp(0, 60).clamp(0, 1.5),
    "difference": lambda y: (y + 1) - y,
}


def target_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    if settings.get("backend") == "native" and shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    if settings.get("engine", "x86") not in torch.backends.quantized.supported_engines:
        pytest.skip("torch has no such engine here")
    return dict(settings)


def data() -> Tensor:
    return 2 * randn(4, 8, 64)


def sqnrs(model: nn.Module, module: nn.Module, x: Tensor) -> list[float]:
    return [float(compute_sqnr(a, b)) for a, b in zip(model(x), module(x))]


def kinds(module: nn.Module) -> dict[str, tuple[bool, str]]:
    return {row.node: (row.int8, row.code) for row in qcompiler.explain(module).rows}


def codes(module: nn.Module) -> set[str]:
    return {remark.code for remark in qcompiler.remarks(module)}


@pytest.mark.parametrize("cut", CUTS)
def test_a_small_part_of_a_range_is_not_lost(cut: str) -> None:
    model, x = Cut(CUTS[cut]).eval(), data()
    module = qcompiler.quantize(model, [x], engine="onednn", progress=False)
    mended = sqnrs(model, module, x)
    assert min(mended) > DUE and "lost-cut" in codes(module)
    assert all(row.int8 for row in qcompiler.explain(module).rows if row.op == "conv1d")
    with gated(Gate(limit=0)):
        held = qcompiler.quantize(model, [x], engine="onednn", progress=False)
    found = sqnrs(model, held, x)
    assert found[0] < mended[0] - LESS and found[1] > DUE and "lost-cut" in codes(held)  # said, where it is not mended


@pytest.mark.parametrize("settings", TARGETS, ids=str)
@pytest.mark.parametrize("cut", ["clamp", "relu", "minimum", "leaky_relu", "number"])
def test_on_each_engine(cut: str, settings: Mapping[str, Any]) -> None:
    model, x = Cut(CUTS[cut]).eval(), data()
    module = qcompiler.quantize(model, [x], progress=False, **target_of(settings))
    assert min(sqnrs(model, module, x)) > DUE and "lost-cut" in codes(module)
    assert all(row.int8 for row in qcompiler.explain(module).rows if row.op == "conv1d")


def test_the_value_behind_is_float_as_well_while_its_steps_are_as_coarse() -> None:
    model, x = Cut(CUTS["clamp"]).eval(), data()
    found = kinds(qcompiler.quantize(model, [x], progress=False))
    assert [found[name] for name in ("mul", "mul_1", "clamp")] == [(False, "lost-cut"), (False, "lost-cut"), (False, "float-input")]


NEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda y: y.clamp(-1, 40),
    "relu": torch.relu,
    "relu6": lambda y: F.relu6(y / 8),
    "half": lambda y: torch.relu(60 - y),
    "minimum": lambda y: torch.minimum(y, 60 - y),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "small": lambda y: y * 0.001,
    "sum": lambda y: y + y.flip(-1),
}


@pytest.mark.parametrize("cut", NEAR)
def test_what_keeps_enough_is_int8(cut: str) -> None:
    model, x = Cut(NEAR[cut]).eval(), data()
    found = flow(model, (x,))
    assert all(row.int8 for row in qcompiler.explain(found.module).rows) and "lost-cut" not in codes(found.module)


def test_a_clamp_that_keeps_enough_has_the_steps_of_its_input() -> None:
    found = flow(Cut(lambda y: y.clamp(-1, 40)).eval(), (data(),))
    scales = {n.all_input_nodes[0].name: n.args[1:3] for n in found.reference.graph.nodes if n.target is quantize}
    assert scales["clamp"] == scales["mul_1"]


@pytest.mark.parametrize(("most", "kept"), [(0.04, 5), (0.1, 13)])
def test_an_op_with_weights_is_float_where_less_than_20_db_are_left(most: float, kept: float) -> None:
    """Steps are 2 / 255 of the largest value."""
    model = Cut(lambda y: y.clamp(0, most), wide=lambda y: y.flip(-1)).eval()
    with torch.no_grad():
        model.a.weight.copy_(torch.eye(8)[:, :, None])
        model.a.bias.zero_()
    x = randn(4, 8, 64).clamp(-1, 1)
    module = qcompiler.quantize(model, [x], progress=False)
    assert "lost-cut" in codes(module)
    assert kinds(module)["a"] == ((False, "lost-cut") if kept < 10 else (True, ""))
    (remark,) = (r for r in qcompiler.remarks(module) if r.code == "lost-cut")
    assert f"the range of %clamp is {kept}" in remark.text
    assert sqnrs(model, module, x)[0] > (DUE if kept < 10 else 15)


def test_what_the_caller_wants_quantized_is_int8() -> None:
    class Wanted(Cut):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.wide(self.a(x))
            return y, self.b(self.cut(y))

    model, x = Wanted(CUTS["clamp"]).eval(), data()
    prepared = qcompiler.prepare_fx(model, None, (x,), prepare_custom_config=PrepareCustomConfig().set_output_quantized_indexes([0]))
    qcompiler.calibrate(prepared, [x])
    module = qcompiler.convert_fx(prepared)
    assert kinds(module)["mul_1"] == (True, "") and "lost-cut" in codes(module)


def test_decided_again_it_is_the_same() -> None:
    """A clamp was observed for itself, so what stays float at convert finds its range."""
    model, x = Cut(CUTS["clamp"]).eval(), data()
    prepared = qcompiler.prepare_fx(model, None, (x,))
    qcompiler.calibrate(prepared, [x])
    module = qcompiler.convert_fx(prepared, keep_float=["mul_1"])
    assert min(sqnrs(model, module, x)) > DUE and kinds(module)["mul_1"] == (False, "keep-float")


def test_other_layers_read_it_on_its_own_range() -> None:
    found = flow(Cut(CUTS["clamp"]).eval(), (data(),))
    scales = {n.all_input_nodes[0].name: float(n.args[1]) for n in found.reference.graph.nodes if n.target is quantize}
    assert scales["clamp"] < 0.02 < 0.2 < scales["mul_1"]
    assert not quant_of(next(n for n in found.reference.graph.nodes if n.name == "mul_1")).int8
