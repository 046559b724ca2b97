"""Networks on words (embedding, recurrent layer or attention, linear) through every flow: trained, calibrated, dynamic, by hand."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from qcompiler import calibrate, convert_fx, explain, prepare_fx, prepare_qat_fx, remarks
from qcompiler.backends.torch.program.module import CompiledModule
from qcompiler.debug import compute_sqnr, parity
from qcompiler.fake_quantize import disable_observer
from qcompiler.ir.types import Mode
from qcompiler.nn.quantized import FloatFunctional
from qcompiler.quantization import (
    DeQuantStub,
    QConfigMapping,
    QuantStub,
    convert,
    default_dynamic_qconfig,
    default_embedding_qat_qconfig,
    float_qparams_weight_only_qconfig,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize_dynamic,
)

WORDS, CLASSES, SIZE = 20, 3, 16


class Recurrent(nn.Module):
    """With stubs for the eager flow; the graph flow sees through them."""

    def __init__(self, layer: type[nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.words, self.layer = nn.Embedding(WORDS, SIZE), layer(SIZE, SIZE, batch_first=True)
        self.norm, self.head = nn.LayerNorm(SIZE), nn.Linear(SIZE, CLASSES)
        self.quant, self.dequant = QuantStub(), DeQuantStub()

    def forward(self, words: Tensor) -> Tensor:
        states, _ = self.layer(self.quant(self.words(words)))
        return self.dequant(self.head(self.norm(states.mean(1))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer = nn.Embedding(WORDS, SIZE), nn.MultiheadAttention(SIZE, 4, batch_first=True, dropout=0.1)
        self.head, self.skip = nn.Linear(SIZE, CLASSES), FloatFunctional()
        self.quant, self.dequant = QuantStub(), DeQuantStub()

    def forward(self, words: Tensor) -> Tensor:
        x = self.quant(self.words(words))
        y, _ = self.layer(x, x, x, need_weights=False)
        return self.dequant(self.head(self.skip.add(x, y).mean(1)))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(SIZE, 4, 2 * SIZE, batch_first=True)
        self.words, self.places = nn.Embedding(WORDS, SIZE), nn.Parameter(torch.zeros(1, 6, SIZE))
        self.layers, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(SIZE, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.layers(self.words(words) + self.places).mean(1))


MODELS: dict[str, Any] = {"lstm": Recurrent, "gru": lambda: Recurrent(nn.GRU), "attention": Attention, "encoder": Encoder}
BY_HAND = ("lstm", "attention")  # GRU has no int8 modules on int8 tensors, nn.TransformerEncoderLayer adds with +
SENTENCES = torch.randint(WORDS, (12, 6), generator=torch.Generator().manual_seed(0))
LABELS = SENTENCES.sum(1) % CLASSES


def seeded(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]()  # type: ignore[no-any-return]


def train(prepared: nn.Module, steps: int = 8) -> None:
    """Steps of Adam; the loss falls."""
    optimizer, losses = torch.optim.Adam(prepared.parameters(), 0.01), []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(prepared(SENTENCES), LABELS))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0]
    prepared.apply(disable_observer).eval()


def check_files(converted: nn.Module, folder: Path) -> None:
    wanted, file = converted(SENTENCES), io.BytesIO()
    if not any(isinstance(m, nn.TransformerEncoderLayer) for m in converted.modules()):  # torch's source reads weights as tensors
        torch.jit.save(torch.jit.script(converted), file)
        assert torch.equal(torch.jit.load(io.BytesIO(file.getvalue()))(SENTENCES), wanted)
    if isinstance(converted, CompiledModule):
        qcompiler.save(converted, folder / "words.qc")
        assert torch.equal(qcompiler.load(folder / "words.qc")(SENTENCES), wanted)
    assert converted(SENTENCES[:0]).shape == (0, CLASSES) and torch.equal(converted(SENTENCES[:5]).argmax(1), wanted[:5].argmax(1))


@pytest.mark.parametrize("name", MODELS)
def test_trained_in_the_graph_flow(name: str, tmp_path: Path) -> None:
    prepared = prepare_qat_fx(seeded(name).train(), None, (SENTENCES,))
    train(prepared)
    converted = convert_fx(prepared)
    report = parity(prepared, converted, [SENTENCES])
    dynamic = [row.module_path for row in explain(converted).rows if row.kind == Mode.DYNAMIC.value]  # where int8 is not slower
    assert report.holds and [d.module_path for d in report.differences if not d.simulated] == dynamic
    note = next(r.text for r in remarks(converted) if r.code == "parity")
    assert note.startswith("the int8 model computes what") and ("did not simulate" in note) == bool(dynamic)
    with torch.no_grad():
        assert compute_sqnr(prepared(SENTENCES), converted(SENTENCES)) > 30
    check_files(converted, tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_calibrated_in_the_graph_flow(name: str, tmp_path: Path) -> None:
    model = seeded(name).eval()
    prepared = prepare_fx(model, None, (SENTENCES,))
    calibrate(prepared, [SENTENCES])
    converted = convert_fx(prepared)
    with torch.no_grad():
        assert compute_sqnr(model(SENTENCES), converted(SENTENCES)) > 25
    assert not [r for r in remarks(converted) if r.code == "guard"]  # no number was frozen that the user did not write
    check_files(converted, tmp_path)


@pytest.mark.parametrize("flow", ["modules", "graph"])
@pytest.mark.parametrize("name", MODELS)
def test_dynamic(name: str, flow: str, tmp_path: Path) -> None:
    model = seeded(name).eval()
    if flow == "modules":
        converted = quantize_dynamic(model)
    else:
        converted = convert_fx(prepare_fx(model, QConfigMapping().set_global(default_dynamic_qconfig), (SENTENCES,)))
    with torch.no_grad():
        assert compute_sqnr(model(SENTENCES), converted(SENTENCES)) > 30
    check_files(converted, tmp_path)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str, trained: bool, tmp_path: Path) -> None:
    model: Any = seeded(name).train(trained)
    model.qconfig = get_default_qat_qconfig("x86") if trained else get_default_qconfig("x86")
    model.words.qconfig = default_embedding_qat_qconfig if trained else float_qparams_weight_only_qconfig
    prepared = prepare_qat(model) if trained else prepare(model)
    train(prepared) if trained else prepared(SENTENCES)
    converted = convert(prepared)
    with torch.no_grad():
        assert compute_sqnr(prepared(SENTENCES), converted(SENTENCES)) > 25
    check_files(converted, tmp_path)
    if name == "lstm":  # rows of the input x gates x (inputs and states), and the head
        found = explain(converted)
        assert not found.uncounted
        macs = {row.node: row.macs for row in found.rows if row.macs}
        assert macs == {"layer": 12 * 6 * 4 * SIZE * 2 * SIZE, "head": 12 * SIZE * CLASSES}
