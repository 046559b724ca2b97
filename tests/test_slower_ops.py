"""Convolutions and linears whose int8 kernel is slower than float in their class of shapes: float, each decided alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler import QConfigMapping, calibrate, convert_fx, explain, get_default_qconfig, prepare_fx, prepare_qat_fx, remarks
from qcompiler.backends.torch.bench.time_slower import LIMITS, Timed, cases, in_classes, in_lines
from qcompiler.backends.torch.kernels.slower import SLOWER, TABLE, class_of_conv, class_of_linear, table, times_float
from tests.cpu import compiled_for_others

pytestmark = compiled_for_others
CODE = "slower-than-float"
WIDE = nn.Conv2d(32, 32, 9, padding=4, groups=32)
MANY = nn.Conv2d(128, 128, 9, padding=4, groups=128)


class Net(nn.Module):
    """A layer between two of another kind, which are int8 on each engine."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        flat = isinstance(layer, nn.Linear)
        inputs, outputs = (layer.in_features, layer.out_features) if flat else (layer.in_channels, layer.out_channels)
        kind: Any = type(layer)
        more = {} if flat else {"kernel_size": 1}
        self.first, self.layer, self.last = kind(16, inputs, **more), layer, kind(outputs, 16, **more)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.first(x)))  # type: ignore[no-any-return]


def prepared_of(layer: nn.Module, sizes: tuple[int, ...], mapping: Any = None, batch: int = 1, **options: Any) -> Any:
    x = torch.randn(batch, 16, *sizes, generator=torch.Generator().manual_seed(0))
    x = x.flatten(2).transpose(1, 2).contiguous() if isinstance(layer, nn.Linear) else x
    prepared = prepare_fx(Net(layer).eval(), mapping, (x,), **options)
    calibrate(prepared, [x])
    return prepared


def row_of(module: Any, path: str = "layer") -> Any:
    return next(row for row in explain(module).rows if row.module_path == path and row.macs)


@pytest.mark.parametrize(("layer", "sizes", "engine", "isa"), [
    (WIDE, (24, 24), "x86", "avx2"),
    (WIDE, (24, 24), "fbgemm", "avx2"),
    (nn.Conv2d(32, 32, (1, 11), groups=32), (32, 32), "x86", "avx2"),
    (nn.Conv2d(1, 16, 3), (80, 80), "x86", "avx2"),
    (nn.Conv2d(60, 60, 3, groups=20, stride=2), (40, 40), "x86", "avx2"),
    (nn.Conv1d(64, 64, 9, groups=64), (1024,), "x86", "avx2"),
    (nn.Conv3d(3, 16, 3), (6, 20, 20), "x86", "avx2"),
    (nn.Conv3d(32, 32, 3, groups=32), (8, 20, 20), "onednn", "avx2"),
    (nn.Linear(4, 256), (30, 30), "x86", "avx2"),
    (MANY, (28, 28), "x86", "avx512_vnni"),
])  # fmt: skip
def test_what_is_slower_stays_float_with_a_remark(layer: nn.Module, sizes: tuple[int, ...], engine: str, isa: str) -> None:
    module = convert_fx(prepared_of(layer, sizes, engine=engine, isa=isa))
    row = row_of(module)
    assert (row.kind, row.code) == ("float", CODE) and "times as long as float" in row.reason
    assert [r.node for r in remarks(module) if r.code == CODE] == [row.node]
    assert row_of(module, "first").int8 and row_of(module, "last").int8


@pytest.mark.parametrize(("layer", "sizes", "engine", "isa"), [
    (WIDE, (4, 4), "x86", "avx2"),  # tiny: a call is most of its time
    (WIDE, (24, 24), "onednn", "avx2"),
    (WIDE, (24, 24), "x86", "avx512_vnni"),
    (WIDE, (24, 24), "qnnpack", "avx2"),  # was not measured
    (WIDE, (24, 24), "x86", "default"),
    (nn.Conv2d(32, 32, 7, padding=3, groups=32), (24, 24), "x86", "avx2"),
    (nn.Conv2d(32, 32, 9, padding=8, dilation=2, groups=32), (24, 24), "x86", "avx2"),
    (nn.Conv2d(3, 64, 7, stride=2), (64, 64), "x86", "avx2"),
    (nn.Conv2d(64, 64, 3, groups=16), (32, 32), "x86", "avx2"),
    (nn.Conv1d(64, 64, 7, groups=64), (1024,), "x86", "avx2"),
    (nn.Linear(64, 256), (30, 30), "x86", "avx2"),
])  # fmt: skip
def test_neighbours_are_int8(layer: nn.Module, sizes: tuple[int, ...], engine: str, isa: str) -> None:
    module = convert_fx(prepared_of(layer, sizes, engine=engine, isa=isa))
    assert row_of(module).int8 and not [r for r in remarks(module) if r.code == CODE]


def test_the_native_kernels_are_others() -> None:
    assert row_of(convert_fx(prepared_of(WIDE, (24, 24), engine="x86", backend="native"))).int8


@pytest.mark.parametrize("sizes", [(4, 4), (24, 24)])
def test_batches_are_decided_alike(sizes: tuple[int, int]) -> None:
    """A state_dict of one fits the other."""
    one, many = (convert_fx(prepared_of(WIDE, sizes, batch=batch, engine="x86", isa="avx2")) for batch in (1, 16))
    assert row_of(one).kind == row_of(many).kind
    one.load_state_dict(many.state_dict())


def test_a_rule_that_names_the_module_is_obeyed_with_a_remark() -> None:
    qconfig = get_default_qconfig("x86")
    mapping = QConfigMapping().set_global(qconfig).set_module_name("layer", qconfig)
    module = convert_fx(prepared_of(WIDE, (24, 24), mapping, engine="x86", isa="avx2"))
    assert row_of(module).int8
    (remark,) = [r for r in remarks(module) if r.code == CODE]
    assert "the qconfig rule module_name layer makes it int8" in remark.text


def test_the_decision_does_not_depend_on_what_else_is_float() -> None:
    def kinds(module: Any) -> list[tuple[str, str]]:
        return [(row.module_path, row.kind) for row in explain(module).rows if row.macs]

    prepared = prepared_of(WIDE, (24, 24), engine="x86", isa="avx2")
    first = row_of(convert_fx(prepared), "first").node
    anew = QConfigMapping().set_global(get_default_qconfig("x86")).set_module_name("first", None)
    again = convert_fx(prepared, keep_float=[first])
    assert kinds(again) == kinds(convert_fx(prepared_of(WIDE, (24, 24), anew, engine="x86", isa="avx2")))
    assert [kind for _, kind in kinds(again)] == ["float", "float", "int8"]


@pytest.mark.parametrize("with_norm", [False, True])
def test_training_decides_alike(with_norm: bool) -> None:
    layer = nn.Sequential(nn.Conv2d(32, 32, 9, padding=4, groups=32), *([nn.BatchNorm2d(32)] if with_norm else []))
    model = nn.Sequential(nn.Conv2d(16, 32, 1), layer, nn.ReLU(), nn.Conv2d(32, 8, 1))
    x = torch.randn(2, 16, 20, 20, generator=torch.Generator().manual_seed(0))
    prepared = prepare_qat_fx(model.train(), None, (x,), engine="x86", isa="avx2")
    prepared(x).square().mean().backward()
    module = convert_fx(prepared.eval())  # its parity is checked
    rows = [row for row in explain(module).rows if row.macs]
    assert [(row.kind, row.code) for row in rows][1] == ("float", CODE) and rows[0].int8 and rows[2].int8


def test_every_class_of_the_table_is_one_that_is_timed() -> None:
    timed = {(case.op, case.place) for case in cases()}
    found = {(op, place) for isa in table().values() for engine in isa.values() for op, places in engine.items() for place in places}
    assert found <= timed and set(table()) == set(LIMITS)
    assert len({case.place for case in cases() if case.place}) > 50


def test_what_the_table_says() -> None:
    """Windows beyond fbgemm's kernel crawl with AVX2 alone; dense layers gain everywhere."""
    place = class_of_conv((96, 1, 9, 9), 96, [1, 1])
    found = times_float("conv2d", place, 10**8, "x86", "avx2")
    assert found is not None and found[0] > 5
    assert times_float("conv2d", place, 1000, "x86", "avx2") is None  # too small to count
    assert times_float("conv2d", place, 10**8, "onednn", "avx512_vnni") is None
    assert class_of_conv((64, 64, 3, 3), 1, [1, 1]) is None and class_of_conv((64, 1, 3, 3), 64, [2, 1]) is None
    for engines in table().values():
        for ops in engines.values():
            assert ops["linear"][class_of_linear((64, 64), 100)][1] < 1 < SLOWER


def test_a_single_size_decides_nothing_and_the_file_is_as_written() -> None:
    assert in_classes({("conv1d", "a"): [(3.0, 10.0)], ("conv1d", "b"): [(3.0, 10.0), (1.1, 5.0)]}) == {"conv1d": {"b": [1.1, 3.0, 300]}}
    text = TABLE.read_text(encoding="utf-8")
    assert in_lines(json.loads(text)) == text
    assert Timed("linear", (3, 8), (4, 8)).case().truth().shape == (3, 4)  # type: ignore[union-attr]
