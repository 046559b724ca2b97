"""Recurrent layers whose int8 kernel is slower than float at their size: float by default, int8 where a dynamic qconfig asks for it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from qcompiler import QConfigMapping, calibrate, convert_fx, explain, get_default_qconfig_mapping, prepare_fx, remarks
from qcompiler.backends.torch.kernels.speed import recurrent_table, recurrent_times
from qcompiler.quantization import default_dynamic_qconfig
from tests.cpu import compiled_for_others

pytestmark = compiled_for_others  # nothing runs
CODE = "slower-than-float"


class Steps(nn.Module):
    def __init__(self, kind: type[nn.Module], size: int) -> None:
        super().__init__()
        self.layer, self.head = kind(size, size), nn.Linear(size, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x[0] if isinstance(self.layer, nn.RNNCellBase) else x)
        return self.head(y[0] if isinstance(y, tuple) else y)  # type: ignore[no-any-return]


def module_of(kind: type[nn.Module], size: int, mapping: Any = None, **options: Any) -> Any:
    x = torch.randn(3, 2, size, generator=torch.Generator().manual_seed(0))
    prepared = prepare_fx(Steps(kind, size).eval(), mapping, (x,), **options)
    if not mapping or mapping.global_qconfig is not default_dynamic_qconfig:
        calibrate(prepared, [x])
    return convert_fx(prepared)


def layer_of(module: Any) -> Any:
    return next(row for row in explain(module).rows if row.module_path == "layer" and row.macs)


SLOW = [(nn.LSTM, "x86", 64), (nn.LSTM, "x86", 128), (nn.LSTM, "fbgemm", 64), (nn.LSTM, "onednn", 192), (nn.GRU, "onednn", 64),
        (nn.LSTMCell, "x86", 64), (nn.GRUCell, "x86", 64), (nn.RNNCell, "x86", 64)]  # fmt: skip
FAST = [(nn.LSTM, "x86", 384), (nn.LSTM, "onednn", 384), (nn.GRU, "x86", 64), (nn.GRUCell, "x86", 384), (nn.LSTM, "qnnpack", 64)]


@pytest.mark.parametrize(("kind", "engine", "size"), SLOW)
def test_a_small_layer_stays_float_with_a_remark(kind: type[nn.Module], engine: str, size: int) -> None:
    module = module_of(kind, size, engine=engine, isa="avx512_vnni")
    row = layer_of(module)
    assert (row.kind, row.code) == ("float", CODE) and "times as long as float" in row.reason
    assert [r.node for r in remarks(module) if r.code == CODE] == [row.node]


@pytest.mark.parametrize(("kind", "engine", "size"), FAST)
def test_a_large_layer_is_int8_dynamic(kind: type[nn.Module], engine: str, size: int) -> None:
    module = module_of(kind, size, engine=engine, isa="avx512_vnni")
    assert layer_of(module).kind == "int8 dynamic" and not [r for r in remarks(module) if r.code == CODE]


@pytest.mark.parametrize("mapping", [
    QConfigMapping().set_global(default_dynamic_qconfig),
    get_default_qconfig_mapping("x86").set_object_type(nn.LSTM, default_dynamic_qconfig),
    get_default_qconfig_mapping("x86").set_module_name("layer", default_dynamic_qconfig),
])  # fmt: skip
def test_a_dynamic_qconfig_is_obeyed_with_a_remark(mapping: QConfigMapping) -> None:
    module = module_of(nn.LSTM, 64, mapping, engine="x86", isa="avx512_vnni")
    assert layer_of(module).kind == "int8 dynamic"
    (remark,) = [r for r in remarks(module) if r.code == CODE]
    assert "times as long as float" in remark.text


@pytest.mark.parametrize(("kind", "engine", "size", "is_int8"), [
    (nn.LSTM, "x86", 64, False), (nn.LSTM, "x86", 128, False), (nn.LSTM, "x86", 256, True), (nn.LSTM, "onednn", 256, False),
    (nn.GRU, "x86", 64, True),
])  # fmt: skip
def test_avx2_has_times_of_its_own(kind: type[nn.Module], engine: str, size: int, is_int8: bool) -> None:
    assert (layer_of(module_of(kind, size, engine=engine, isa="avx2")).kind == "int8 dynamic") is is_int8


@pytest.mark.parametrize("kind", [nn.LSTM, nn.LSTMCell, nn.GRUCell])
def test_natively_small_layers_are_int8(kind: type[nn.Module]) -> None:
    """The times are those of torch's kernels, and the native ones take half of float's at every size."""
    module = module_of(kind, 64, engine="x86", backend="native")
    assert layer_of(module).kind == "int8 dynamic" and not [r for r in remarks(module) if r.code == CODE]


def test_where_nothing_was_measured_the_layer_is_int8() -> None:
    assert recurrent_times("lstm", 32_768, "x86", "default") is None and recurrent_times("lstm", 32_768, "qnnpack", "avx512_vnni") is None
    assert layer_of(module_of(nn.LSTM, 64, engine="x86", isa="default")).kind == "int8 dynamic"


def test_packed_sequences_count_as_layers_and_the_next_size_is_taken() -> None:
    known = recurrent_table()["avx512"]["fbgemm"]["lstm"]
    assert recurrent_times("lstm_packed", 33_000, "x86", "avx512_vnni") == tuple(known["32768"])
    assert recurrent_times("lstm", 10**9, "x86", "avx512_vnni") == tuple(known["2097152"])


def test_the_table_says_that_larger_layers_gain_more() -> None:
    """Int8 multiplies faster and costs more a call: where it does not look so, the table was measured badly."""
    for engine in recurrent_table()["avx512"].values():
        for sizes in engine.values():
            ratios = [int8 / real for real, int8 in (sizes[k] for k in sorted(sizes, key=int))]
            assert all(b < a * 1.1 for a, b in itertools.pairwise(ratios))
