"""Indices of int8 embeddings in every integer type and layout of memory, as nn.Embedding takes them, and those that none may take."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler as qc
from qcompiler.backends.torch.runtime import tables
from qcompiler.config.qconfig import float_qparams_weight_only_qconfig, float_qparams_weight_only_qconfig_4bit
from qcompiler.errors import InputError
from qcompiler.nn.quantized import Embedding, EmbeddingBag
from qcompiler.quantization import quantize_dynamic
from tests.flow import ENGINES
from tests.test_embedding import CLOSE, table

QCONFIGS = {8: float_qparams_weight_only_qconfig, 4: float_qparams_weight_only_qconfig_4bit}
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
IDS = torch.arange(24).reshape(4, 6) % 20
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "the token of a decoding step": lambda ids: ids[:, -1:],
    "every second": lambda ids: ids[:, ::2],
    "one column": lambda ids: ids[:, 3],
    "transposed": lambda ids: ids.t(),
    "expanded": lambda ids: ids[:1].expand(3, -1),
    "an offset into memory": lambda ids: ids[1:, 1:],
    "channels of a window": lambda ids: ids.unfold(1, 2, 1),
    "none": lambda ids: ids[:, :0],
    "no batch": lambda ids: ids[:0, ::2],
}


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("bits", [8, 4])
def test_rows_of_any_layout(bits: int, dtype: torch.dtype) -> None:
    packed, real = table(20, 7, bits)
    for view in LAYOUTS.values():
        indices = view(IDS.to(dtype))
        found = tables.embedding_rows(packed, indices, 7, bits)
        assert torch.equal(found, tables.embedding_rows(packed, indices.long().contiguous(), 7, bits))
        assert not found.numel() or (found - real[indices.long()]).abs().max() < CLOSE[bits]


@pytest.mark.parametrize("offsets", [torch.tensor([0, 2, 2]), torch.arange(0, 12, 2)[::2] // 2, torch.tensor([0, 5])])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("bits", [8, 4])
def test_bags_of_any_layout(bits: int, mode: str, offsets: Tensor) -> None:
    packed, real = table(20, 7, bits)
    flat, weights = IDS.flatten()[::3], torch.rand(24)[::3]  # neither stands in one piece
    for padding in (None, 3):
        for scale in (None, weights) if mode == "sum" else (None,):
            want = F.embedding_bag(flat, real, offsets, mode=mode, padding_idx=padding,
                                   per_sample_weights=None if scale is None else scale.double())  # fmt: skip
            for dtype in INTEGERS:
                for kind in INTEGERS:
                    given = flat.to(dtype), offsets.to(kind), scale
                    found = tables.embedding_bag_rows(packed, *given, 7, bits, mode, False, padding)
                    assert (found - want).abs().max() < 8 * CLOSE[bits]  # at most 8 rows a bag


class Decoder(nn.Module):
    def __init__(self, bag: bool) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(20, 8, mode="mean") if bag else nn.Embedding(20, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids))


@pytest.mark.parametrize("bag", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_compiled_module_in_all_its_forms(engine: str, bits: int, bag: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    mapping = qc.get_default_qconfig_mapping(engine).set_module_name("table", QCONFIGS[bits])
    prepared = qc.prepare_fx(Decoder(bag).eval(), mapping, (IDS,), engine=engine)
    qc.calibrate(prepared, [IDS])
    module = qc.convert_fx(prepared)
    qc.save(module, tmp_path / "m.qc")
    torch.backends.quantized.engine = engine
    try:
        qc.export_source(module, tmp_path / "source")
        source = runpy.run_path(str(tmp_path / "source" / "model.py"))["load"]()
        forms = [module, qc.load(tmp_path / "m.qc"), torch.jit.script(module), source]
        for name in ("the token of a decoding step", "every second", "transposed", "no batch"):
            ids = LAYOUTS[name](IDS)
            want = module(ids.contiguous())
            for kind in INTEGERS:
                assert all(torch.equal(form(ids.to(kind)), want) for form in forms), (name, kind)
    finally:
        torch.backends.quantized.engine = "x86"


FORWARDS: dict[str, tuple[bool, Callable[[Any, Tensor], Tensor]]] = {  # whether any integer type will do
    "moved and cut": (True, lambda s, i: s.head(s.table(i.t()[1:].reshape(-1).unsqueeze(0)))),
    "twice": (True, lambda s, i: s.head(s.table(i) + s.table(i.flip(1)))),
    "its sizes too": (True, lambda s, i: s.head(s.table(i) + s.table(torch.arange(i.shape[1])))),
    "computed with": (False, lambda s, i: s.head(s.table((i * 3) % 20))),
    "compared": (False, lambda s, i: s.head(s.table(i)) * (i > 3)[..., None]),
    "returned": (False, lambda s, i: (s.head(s.table(i)), i)),
    "an operand": (False, lambda s, i: s.head(s.table(i) * i[..., None])),
}


class Lookup(Decoder):
    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__(bag=False)
        self.compute = forward

    def forward(self, ids: Tensor) -> Tensor:
        return self.compute(self, ids)


@pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=pytest.mark.skipif(not which("cc"), reason="no C compiler"))])
@pytest.mark.parametrize("name", FORWARDS)
def test_an_input_that_is_an_index_alone_has_any_integer_type(name: str, backend: str) -> None:
    taken, forward = FORWARDS[name]
    mapping = qc.get_default_qconfig_mapping().set_module_name("table", QCONFIGS[8])
    prepared = qc.prepare_fx(Lookup(forward).eval(), mapping, (IDS,), backend=backend)
    qc.calibrate(prepared, [IDS])
    module = qc.convert_fx(prepared)
    for kind in INTEGERS[1:]:
        if taken:
            assert torch.equal(module(IDS.to(kind)), module(IDS))
        else:
            with pytest.raises(InputError, match=r"must be a torch\.int64 tensor"):
                module(IDS.to(kind))
    for wrong in (IDS.float(), IDS.bool(), IDS[0]):
        with pytest.raises(InputError, match=r"must be a torch\.int64 tensor"):
            module(wrong)


@pytest.mark.parametrize("kind", [torch.int16, torch.int8, torch.uint8])
def test_an_example_that_the_float_embedding_refuses_has_the_right_hint(kind: torch.dtype) -> None:
    with pytest.raises(InputError) as raised:
        qc.prepare_fx(Decoder(False).eval(), None, (IDS.to(kind),))
    assert raised.value.hint == "give int64: x.to(torch.int64)"


@pytest.mark.parametrize("dtype", [torch.quint8, torch.quint4x2])
def test_eager_modules_and_their_scripts(dtype: torch.dtype) -> None:
    model = quantize_dynamic(nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 4)).eval(), {nn.Embedding}, dtype)
    assert isinstance(model[0], Embedding)
    for form in (model, torch.jit.script(model)):
        for kind in INTEGERS:
            for view in LAYOUTS.values():
                ids = view(IDS.to(kind))
                assert torch.equal(form(ids), model(ids.long().contiguous()))


BAD_BAGS: dict[str, tuple[Tensor, Tensor | None, Tensor | None]] = {
    "offsets beyond the indices": (IDS[0], torch.tensor([0, 9]), None),
    "offsets that decrease": (IDS[0], torch.tensor([0, 4, 2]), None),
    "offsets that do not begin at 0": (IDS[0], torch.tensor([2, 4]), None),
    "offsets that are floats": (IDS[0], torch.tensor([0.0, 2.0]), None),
    "offsets of two dimensions": (IDS[0], torch.tensor([[0, 2]]), None),
    "weights for fewer indices": (IDS[0], torch.tensor([0, 2]), torch.rand(3)),
    "weights in half precision": (IDS[0], torch.tensor([0, 2]), torch.rand(6).half()),
    "indices of three dimensions": (IDS[None], None, None),
}


@pytest.mark.parametrize("name", BAD_BAGS)
@pytest.mark.parametrize("bits", [8, 4])
def test_what_would_read_memory_that_is_not_there_is_an_error(bits: int, name: str) -> None:
    module = EmbeddingBag(20, 8, mode="sum", dtype=torch.quint8 if bits == 8 else torch.quint4x2)
    with pytest.raises(InputError) as raised:
        module(*BAD_BAGS[name])
    assert "must be in" not in str(raised.value.hint)  # the range of the indices is not to blame
    with pytest.raises((RuntimeError, torch.jit.Error)):
        torch.jit.script(module)(*BAD_BAGS[name])


@pytest.mark.parametrize("indices", [torch.tensor([20]), torch.tensor([-1]), torch.tensor([[0, 99]])[:, 1:]])
def test_an_index_without_a_row_blames_the_range(indices: Tensor) -> None:
    with pytest.raises(InputError) as raised:
        Embedding(20, 8)(indices)
    assert raised.value.hint == "indices must be in 0..19"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_what_is_no_integer_is_no_index(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match="must be integers"):
        Embedding(20, 8)(torch.zeros(2, dtype=dtype))
    with pytest.raises(RuntimeError, match="must be integers"):
        tables.embedding_rows(table(20, 8, 8)[0], torch.zeros(2, dtype=dtype), 8, 8)


class Steps(nn.Module):
    """Tables in a list, of which one form of the call reads a bag besides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tables = nn.ModuleList([nn.Embedding(20, 8), nn.Embedding(20, 8)])
        self.bag, self.head = nn.EmbeddingBag(20, 8, mode="sum"), nn.Linear(8, 4)

    def forward(self, ids: Tensor, more: Tensor | None = None) -> Tensor:
        y = self.tables[0](ids[:, -1:]) + self.tables[1](ids[:, :1])
        return self.head(y if more is None else y + self.bag(more[:, ::2])[:, None])


@pytest.mark.parametrize("kind", INTEGERS)
def test_call_forms_take_any_integer_and_layout(kind: torch.dtype, tmp_path: Path) -> None:
    ids, more = torch.arange(24).reshape(4, 6) % 20, torch.arange(20).reshape(4, 5) % 20
    prepared: Any = qc.prepare_fx(Steps().eval(), None, (ids,), example_kwargs=[{}, {"more": more}])
    prepared(ids), prepared(ids, more)
    module: Any = qc.convert_fx(prepared)
    qc.save(module, tmp_path / "m")
    for made in (module, qc.load(tmp_path / "m")):
        for given in (ids, ids.t().contiguous().t(), ids.repeat(1, 2)[:, :6]):
            assert torch.equal(made(given.to(kind)), module(ids))
            assert torch.equal(made(given.to(kind), more.to(kind)), module(ids, more))
        with pytest.raises(InputError, match="has none of the 2 forms"):
            made(ids.float())
