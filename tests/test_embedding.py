"""Embedding tables of 8 and 4 bits: kernels, modules, graph flow."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler import convert_fx, explain, prepare_fx
from qcompiler.backends.torch.runtime import tables
from qcompiler.config.qconfig import (
    default_dynamic_qconfig,
    default_per_channel_qconfig,
    float16_dynamic_qconfig,
    float_qparams_weight_only_qconfig,
    float_qparams_weight_only_qconfig_4bit,
)
from qcompiler.config.qconfig_mapping import QConfigMapping
from qcompiler.errors import ConfigError, InputError
from qcompiler.nn.quantized import Embedding, EmbeddingBag
from qcompiler.ops.reference import dequantize_weight, pack_4bit
from tests.flow import ENGINES

QCONFIGS = {8: float_qparams_weight_only_qconfig, 4: float_qparams_weight_only_qconfig_4bit}
# of values of order 1: float32 arithmetic; 4-bit rows hold scale and bias as float16
CLOSE = {8: 1e-5, 4: 5e-3}


def table(rows: int, columns: int, bits: int) -> tuple[Tensor, Tensor]:
    """(what the kernels read, the float64 values)"""
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
    scale, zero_point = torch.rand(rows).double() * 2 / 2**bits + 1e-3, torch.rand(rows).double() * 2**bits
    real = (codes.double() - zero_point[:, None]) * scale[:, None]
    packed = tables.rows_8bit(codes, scale, zero_point) if bits == 8 else tables.rows_4bit(pack_4bit(codes), scale, zero_point)
    return packed, real


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("columns", [16, 7, 1])
@pytest.mark.parametrize("bits", [8, 4])
def test_rows(bits: int, columns: int, dtype: torch.dtype) -> None:
    torch.manual_seed(columns)
    packed, real = table(20, columns, bits)
    for shape in ((9,), (3, 4), (2, 3, 2), (), (0,), (1,)):
        indices = torch.randint(0, 20, shape, dtype=dtype)
        got = tables.embedding_rows(packed, indices, columns, bits)
        assert got.shape == (*shape, columns) and got.dtype is torch.float32
        assert not got.numel() or (got - real[indices.long()]).abs().max() < CLOSE[bits]


BAGS: dict[str, tuple[Any, Any, bool]] = {
    "2-d": (lambda: torch.randint(0, 20, (3, 4)), None, False),
    "offsets": (lambda: torch.randint(0, 20, (9,)), [0, 2, 5], False),
    "an empty bag": (lambda: torch.randint(0, 20, (9,)), [0, 4, 4, 6], False),
    "the last offset": (lambda: torch.randint(0, 20, (9,)), [0, 4, 9], True),
    "no bags": (lambda: torch.zeros(0, dtype=torch.long), [0], True),
    "int32": (lambda: torch.randint(0, 20, (9,), dtype=torch.int32), [0, 3], False),
}


@pytest.mark.parametrize("padding", [None, 3, 0])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("name", BAGS)
@pytest.mark.parametrize("bits", [8, 4])
def test_bags(bits: int, name: str, mode: str, padding: int | None) -> None:
    torch.manual_seed(0)
    make, ends, last = BAGS[name]
    packed, real = table(20, 7, bits)
    indices = make()
    offsets = None if ends is None else torch.tensor(ends, dtype=indices.dtype)
    for weights in (None, torch.rand(indices.shape)) if mode == "sum" else (None,):
        got = tables.embedding_bag_rows(packed, indices, offsets, weights, 7, bits, mode, last, padding)
        want = F.embedding_bag(indices, real, offsets, mode=mode, include_last_offset=last, padding_idx=padding,
                               per_sample_weights=None if weights is None else weights.double())  # fmt: skip
        assert got.shape == want.shape and (not got.numel() or (got - want).abs().max() < 4 * CLOSE[bits])


def float_module(kind: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    return kind(30, 9, **settings).eval()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("settings", [{}, {"padding_idx": 4}], ids=["plain", "padding"])
def test_embedding_module(settings: dict[str, Any], bits: int) -> None:
    module, indices = float_module(nn.Embedding, **settings), torch.tensor([[1, 4, 29], [0, 4, 4]])
    module.qconfig = QCONFIGS[bits]
    made = Embedding.from_float(module)
    _check_module(made, Embedding(30, 9, dtype=torch.quint8 if bits == 8 else torch.quint4x2), (indices,))
    step = made._stored()[1].max()
    with torch.no_grad():
        assert (made(indices) - module(indices)).abs().max() < 0.51 * step + CLOSE[bits]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("settings", [{"mode": "sum"}, {"mode": "mean", "padding_idx": 4}, {"mode": "max", "include_last_offset": True}],
                         ids=lambda s: s["mode"])  # fmt: skip
def test_bag_module(settings: dict[str, Any], bits: int) -> None:
    module, indices, offsets = float_module(nn.EmbeddingBag, **settings), torch.tensor([1, 4, 29, 0, 4, 7]), torch.tensor([0, 2, 6])
    offsets = offsets if "include_last_offset" in settings else offsets[:2]
    module.qconfig = QCONFIGS[bits]
    made = EmbeddingBag.from_float(module)
    fresh = EmbeddingBag(30, 9, dtype=torch.quint8 if bits == 8 else torch.quint4x2, **settings)
    _check_module(made, fresh, (indices, offsets))
    with torch.no_grad():
        assert (made(indices, offsets) - module(indices, offsets)).abs().max() < 4 * made._stored()[1].max()


def _check_module(made: Any, fresh: Any, inputs: tuple[Any, ...]) -> None:
    want = made(*inputs)
    fresh.load_state_dict(made.state_dict())
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(made), file)
    file.seek(0)
    for other in (fresh, copy.deepcopy(made), pickle.loads(pickle.dumps(made)), torch.jit.load(file), torch.jit.script(made),
                  torch.jit.trace(made, inputs)):  # fmt: skip
        assert torch.equal(other(*inputs), want)
    assert "scales=" in repr(made) and not any(t.is_quantized for t in made.state_dict().values())


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_in_torchs_form(bits: int) -> None:
    made = Embedding.from_float(float_module(nn.Embedding)) if bits == 8 else Embedding(30, 9, dtype=torch.quint4x2)
    other = Embedding(30, 9, dtype=made.dtype)
    other.set_weight(made.weight())
    assert torch.equal(other(torch.arange(30)), made(torch.arange(30)))
    again = Embedding(30, 9, _weight=made.weight(), dtype=made.dtype)
    assert torch.equal(again(torch.arange(30)), made(torch.arange(30)))
    with pytest.raises(ConfigError, match="quantized by row"):
        other.set_weight(torch.quantize_per_tensor(torch.zeros(30, 9), 1.0, 0, torch.quint8))


def test_a_symmetric_qconfig_keeps_its_rows() -> None:
    module = float_module(nn.Embedding)
    module.qconfig = default_per_channel_qconfig
    made = Embedding.from_float(module)
    scale = module.weight.detach().abs().amax(1) / 127.5
    assert torch.allclose(made._stored()[1].float(), scale) and bool((made._stored()[2] == 128).all())
    with torch.no_grad():
        assert (made(torch.arange(30)) - module.weight).abs().max() < 1.01 * scale.max()  # 127.5 steps: the largest loses up to one


def test_agrees_with_torch_ao() -> None:
    import torch.ao.nn.quantized as theirs
    from torch.ao.quantization import float_qparams_weight_only_qconfig as their_qconfig

    module, indices = float_module(nn.Embedding), torch.arange(30)
    module.qconfig = their_qconfig
    want = theirs.Embedding.from_float(module)(indices)
    module.qconfig = float_qparams_weight_only_qconfig
    assert (Embedding.from_float(module)(indices) - want).abs().max() < 1e-5


def test_wrong_use_is_named() -> None:
    made = Embedding.from_float(float_module(nn.Embedding))
    made._qc_path = "encoder.table"
    for indices, text in ((torch.tensor([30]), "0..29"), (torch.tensor([-1]), "0..29"), (torch.zeros(2), "must be integers")):
        with pytest.raises(InputError) as caught:
            made(indices)
        assert text in str(caught.value) and caught.value.where.module_path == "encoder.table"
    bag = EmbeddingBag(30, 9, mode="mean")
    for args in ((torch.tensor([1, 2]),), (torch.tensor([[1, 2]]), torch.tensor([0])),
                 (torch.tensor([[1, 2]]), None, torch.ones(1, 2))):  # fmt: skip
        with pytest.raises(InputError):
            bag(*args)
    with pytest.raises(ConfigError, match="max_norm"):
        Embedding.from_float(nn.Embedding(3, 4, max_norm=1.0))
    with pytest.raises(ConfigError, match="float16"):
        module = float_module(nn.Embedding)
        module.qconfig = float16_dynamic_qconfig
        Embedding.from_float(module)


class Bags(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(30, 9, **settings)
        self.eval()

    def forward(self, indices: Tensor, offsets: Tensor | None = None) -> Tensor:
        result: Tensor = self.bag(indices, offsets)
        return result


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bits", [8, 4, 16])
@pytest.mark.parametrize("settings", [{"mode": "sum"}, {"mode": "mean", "padding_idx": -1}, {"mode": "max"}], ids=lambda s: s["mode"])
def test_bags_in_the_graph_flow(settings: dict[str, Any], bits: int, engine: str) -> None:
    torch.manual_seed(0)
    model, qconfig = Bags(**settings), QCONFIGS.get(bits, float16_dynamic_qconfig)
    for inputs in ((torch.tensor([1, 29, 3, 0]), torch.tensor([0, 3])), (torch.tensor([[1, 2, 29]]),)):
        module = convert_fx(prepare_fx(model, QConfigMapping().set_global(qconfig), inputs, engine=engine))
        with torch.no_grad():
            assert (module(*inputs) - model(*inputs)).abs().max() < {8: 0.05, 4: 0.7, 16: 5e-3}[bits]
        assert [row.kind for row in explain(module).rows] == [f"{bits}-bit weights" if bits < 16 else "float16 weights"]
        assert torch.equal(torch.jit.script(module)(*inputs), module(*inputs))


def test_functional_forms() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(30, 8))
            self.eval()

        def forward(self, indices: Tensor) -> Tensor:
            return F.embedding(indices, self.weight) + F.embedding_bag(indices, self.weight, mode="sum")[:, None]

    torch.manual_seed(0)
    model, indices = Functional(), torch.tensor([[1, 2, 3], [4, 5, 29]])
    module = convert_fx(prepare_fx(model, QConfigMapping().set_global(default_dynamic_qconfig), (indices,)))
    assert [row.kind for row in explain(module).rows if "embedding" in row.op] == ["8-bit weights", "8-bit weights"]
    assert (module(indices) - model(indices)).abs().max() < 0.1 and module.state_dict()["weight"].dtype is torch.uint8


def test_a_renormalizing_table_stays_float() -> None:
    model = nn.Sequential(nn.Embedding(5, 4, max_norm=1.0)).eval()
    module = convert_fx(prepare_fx(model, QConfigMapping().set_global(default_dynamic_qconfig), (torch.tensor([1]),)))
    assert not any("bit" in row.kind for row in explain(module).rows)


def test_dequantized_rows_are_the_reference() -> None:
    made = Embedding.from_float(float_module(nn.Embedding))
    values, scale, zero_point = made._stored()
    assert (made(torch.arange(30)) - dequantize_weight(values, scale, zero_point, 0)).abs().max() < 1e-6
