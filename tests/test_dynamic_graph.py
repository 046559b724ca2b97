"""Dynamic and weight-only qconfigs through prepare_fx and convert_fx."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import qcompiler
from qcompiler import artifact, convert_fx, convert_to_reference_fx, explain, prepare_fx
from qcompiler.api import remarks
from qcompiler.backends.torch.kernels import speed
from qcompiler.config.qconfig import (
    QConfig,
    default_dynamic_qconfig,
    default_weight_only_qconfig,
    float16_dynamic_qconfig,
    float_qparams_weight_only_qconfig,
    float_qparams_weight_only_qconfig_4bit,
    per_channel_dynamic_qconfig,
)
from qcompiler.config.qconfig_mapping import QConfigMapping
from qcompiler.debug.metrics import compute_sqnr
from qcompiler.errors import ConfigError, NumericsError
from qcompiler.observers import MinMaxObserver, PlaceholderObserver
from qcompiler.ops import recurrent
from tests.cpu import STEPS, compiled_for_others
from tests.flow import ENGINES, flow, randn

QCONFIGS = {
    "dynamic": default_dynamic_qconfig,
    "per channel": per_channel_dynamic_qconfig,
    "float16": float16_dynamic_qconfig,
    "weight-only": default_weight_only_qconfig,
    "8-bit tables": float_qparams_weight_only_qconfig,
}


def everywhere(qconfig: Any) -> QConfigMapping:
    return QConfigMapping().set_global(qconfig)


class Tagger(nn.Module):
    """Embedding, LSTM, GRU without biases, linear with ReLU, convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16, padding_idx=0)
        self.lstm = nn.LSTM(16, 24, 2, bidirectional=True, batch_first=True, dropout=0.1)
        self.gru = nn.GRU(48, 16, batch_first=True, bias=False)
        self.conv = nn.Conv1d(16, 12, 3, padding=1)
        self.head = nn.Linear(12, 9)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        y, (hidden, _) = self.lstm(self.table(ids))
        y, _ = self.gru(y)
        return torch.relu(self.head(self.conv(y.transpose(1, 2)).transpose(1, 2))), hidden


def tagger() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Tagger().eval(), torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(0))


def converted(model: nn.Module, inputs: tuple[Any, ...], qconfig: Any, **options: Any) -> Any:
    """Without any calibration."""
    return convert_fx(prepare_fx(model, everywhere(qconfig), inputs, **options))


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", QCONFIGS)
def test_no_data_is_needed_and_the_reference_agrees(name: str, engine: str) -> None:
    model, ids = tagger()
    prepared = prepare_fx(model, everywhere(QCONFIGS[name]), (ids,), engine=engine)
    reference, module = convert_to_reference_fx(prepared), convert_fx(prepared)
    for got, want, real in zip(module(ids), reference(ids), model(ids), strict=True):
        # a value on a tie may be rounded to the other step of 255
        assert (got - want).abs().max() < 1e-3
        assert compute_sqnr(real, got) > (60 if name == "float16" else 30)


@pytest.mark.parametrize("name", QCONFIGS)
def test_copies_scripts_and_files_are_equal_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, ids = tagger()
    module = converted(model, (ids,), QCONFIGS[name])
    want = module(ids)
    scripted = torch.jit.script(module)
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    artifact.save(module, tmp_path / "m.qc")
    loaded = artifact.load(tmp_path / "m.qc")
    other = converted(tagger()[0], (ids,), QCONFIGS[name])
    other.load_state_dict(module.state_dict())
    for made in (copy.deepcopy(module), scripted, torch.jit.load(buffer), loaded, other):
        assert same(made(ids), want)
    assert {row.kind for row in explain(loaded).rows} == {row.kind for row in explain(module).rows}


def test_source_files_run(tmp_path: Path) -> None:
    import runpy

    from qcompiler.backends.torch.program.export import export_source

    model, ids = tagger()
    for name in ("dynamic", "float16"):
        module = converted(model, (ids,), QCONFIGS[name])
        folder = tmp_path / name
        export_source(module, folder)
        made = runpy.run_path(str(next(folder.glob("*.py"))))["load"]()
        assert same(made(ids), module(ids))


def test_explain_names_the_mode() -> None:
    model, ids = tagger()
    kinds = {row.op: row.kind for row in explain(converted(model, (ids,), default_dynamic_qconfig)).rows}
    assert kinds["lstm"] == kinds["gru"] == kinds["linear"] == "int8 dynamic"
    assert kinds["embedding"] == kinds["conv1d"] == "8-bit weights" and kinds["transpose"] == "float"
    assert "int8 dynamic" in str(explain(converted(model, (ids,), default_dynamic_qconfig)))
    kinds = {row.op: row.kind for row in explain(converted(model, (ids,), float16_dynamic_qconfig)).rows}
    assert {kinds[op] for op in ("lstm", "embedding", "conv1d")} == {"float16 weights"}


def test_what_cannot_be_as_asked_says_so() -> None:
    model, ids = tagger()
    notes = {r.where.module_path: r.text for r in remarks(converted(model, (ids,), default_dynamic_qconfig)) if r.code == "other-mode"}
    assert "8-bit weights" in notes["conv"] and "no right dynamic kernel" in notes["conv"] and "8-bit weights" in notes["table"]


def test_weights_are_plain_tensors_under_the_names_of_the_model() -> None:
    model, ids = tagger()
    state = converted(model, (ids,), default_dynamic_qconfig).state_dict()
    assert set(model.state_dict()) <= set(state)
    assert state["lstm.weight_hh_l1_reverse"].dtype is torch.int8 and state["table.weight"].dtype is torch.uint8
    assert not any(t.is_quantized for t in state.values())
    assert converted(model, (ids,), float16_dynamic_qconfig).state_dict()["head.weight"].dtype is torch.float16


def bytes_of(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())


@pytest.mark.parametrize(("qconfig", "most"), [(default_dynamic_qconfig, 0.27), (float16_dynamic_qconfig, 0.52),
                                               (float_qparams_weight_only_qconfig_4bit, 0.15)])  # fmt: skip
def test_sizes(qconfig: Any, most: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recurrent_layers: nn.Module = nn.LSTM(256, 256).eval()
    model = nn.Embedding(5000, 256).eval() if qconfig is float_qparams_weight_only_qconfig_4bit else recurrent_layers
    x = randn(3, 2, 256) if model is recurrent_layers else torch.arange(6)
    module = converted(model, (x,), qconfig)
    artifact.save(module, tmp_path / "m.qc")
    assert bytes_of(module) < most * bytes_of(model)
    assert (tmp_path / "m.qc").stat().st_size < (most + 0.01) * bytes_of(model)


class States(nn.Module):
    """A layer whose states come from outside."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.eval()

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor | None = None) -> Any:
        return self.layer(x, hidden if cell is None else (hidden, cell))


LAYERS = {
    "LSTM": (lambda: nn.LSTM(6, 8, 2), (4, 3, 6), [(2, 3, 8), (2, 3, 8)]),
    "LSTM unbatched": (lambda: nn.LSTM(6, 8, bidirectional=True), (4, 6), [(2, 8), (2, 8)]),
    "GRU": (lambda: nn.GRU(6, 8, batch_first=True), (4, 3, 6), [(1, 4, 8)]),
    "GRU unbatched": (lambda: nn.GRU(6, 8), (4, 6), [(1, 8)]),
    "LSTMCell": (lambda: nn.LSTMCell(6, 8), (3, 6), [(3, 8), (3, 8)]),
    "LSTMCell unbatched": (lambda: nn.LSTMCell(6, 8, bias=False), (6,), [(8,), (8,)]),
    "GRUCell": (lambda: nn.GRUCell(6, 8), (3, 6), [(3, 8)]),
    "RNNCell": (lambda: nn.RNNCell(6, 8), (3, 6), [(3, 8)]),
    "RNNCell relu": (lambda: nn.RNNCell(6, 8, nonlinearity="relu", bias=False), (3, 6), [(3, 8)]),
}


def tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for v in value for t in tensors(v)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("qconfig", [default_dynamic_qconfig, float16_dynamic_qconfig, None], ids=["int8", "float16", "float"])
def test_states_in_and_out(name: str, qconfig: Any, engine: str) -> None:
    make, shape, states = LAYERS[name]
    torch.manual_seed(0)
    layer, inputs = make().eval(), (randn(*shape), *(randn(*s, seed=1) * 0.5 for s in states))
    for model, args in ((layer, inputs[:1]), (States(layer), inputs)):
        prepared = prepare_fx(model, everywhere(qconfig), args, engine=engine)
        module = convert_fx(prepared)
        got, want, real = (tensors(f(*args)) for f in (module, convert_to_reference_fx(prepared), model))
        for a, b, c in zip(got, want, real, strict=True):
            assert a.shape == c.shape and (a - b).abs().max() < 5e-3
            assert torch.equal(a, c) if qconfig is None else (a - c).abs().max() < 0.05
        assert same(tensors(torch.jit.script(module)(*args)), got)


def test_the_arithmetic_is_that_of_float64() -> None:
    """The compiled LSTM against the layer in float64, with weights and ranges that are read from its state_dict."""
    torch.manual_seed(0)
    layer, x = nn.LSTM(6, 8, 2, bidirectional=True).eval(), randn(5, 3, 6)
    module = converted(layer, (x,), default_dynamic_qconfig)
    state = module.state_dict()
    names = [f"{side}_l{k}{end}" for k in (0, 1) for end in ("", "_reverse") for side in ("ih", "hh")]
    weights = [state[f"weight_{n}"].double() * state[f"weight_{n}_scale"] for n in names]
    biases = [state[f"bias_{n}"].double() for n in names]
    want = recurrent.lstm(x.double(), None, None, weights, biases, bidirectional=True, activation_range=(0, STEPS))
    for a, b in zip(tensors(module(x)), tensors(want), strict=True):
        assert (a - b).abs().max() < 2e-3 and (a - b).abs().median() < 1e-6


def test_any_length_and_batch() -> None:
    model, ids = tagger()
    module = converted(model, (ids,), default_dynamic_qconfig)
    for shape in ((1, 1), (5, 20), (0, 4)):
        got, want = module(torch.ones(shape, dtype=torch.long)), model(torch.ones(shape, dtype=torch.long))
        assert all(a.shape == b.shape for a, b in zip(got, want, strict=True))


def test_static_qconfigs_quantize_tables_by_row_and_layers_at_run_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "recurrent_table", dict)  # by which layers as small as these stay float
    model, ids = tagger()
    module = flow(model, (ids,)).module
    kinds = {row.op: row.kind for row in explain(module).rows}
    assert kinds["lstm"] == "int8 dynamic" and kinds["embedding"] == "8-bit weights" and kinds["linear"] == kinds["conv1d"] == "int8"
    assert any("quantize them at run time" in r.text for r in remarks(module))


def test_parts_stay_float_where_their_qconfig_is_none() -> None:
    model, ids = tagger()
    mapping = everywhere(default_dynamic_qconfig).set_module_name("lstm", None).set_object_type(nn.Embedding, None)
    module = convert_fx(prepare_fx(model, mapping, (ids,)))
    kinds = {row.op: row.kind for row in explain(module).rows}
    assert kinds["lstm"] == kinds["embedding"] == "float" and kinds["gru"] == "int8 dynamic"
    only = convert_fx(prepare_fx(nn.Sequential(nn.LSTM(4, 4)).eval(), QConfigMapping().set_object_type(nn.LSTM, default_dynamic_qconfig),
                                 (randn(3, 2, 4),)))  # fmt: skip
    assert [row.kind for row in explain(only).rows] == ["int8 dynamic"]


def test_dynamic_and_static_parts_together() -> None:
    model, ids = tagger()
    mapping = qcompiler.get_default_qconfig_mapping().set_object_type(nn.Linear, default_dynamic_qconfig)
    module = flow(model, (ids,), mapping=mapping).module
    kinds = {row.op: row.kind for row in explain(module).rows}
    assert kinds["linear"] == "int8 dynamic" and kinds["conv1d"] == "int8"
    assert compute_sqnr(model(ids)[0], module(ids)[0]) > 25


class Tied(nn.Module):
    """A language model whose decoder is its table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.decoder = nn.Embedding(40, 16), nn.Linear(16, 40)
        self.decoder.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.decoder(self.table(ids))
        return result


@pytest.mark.parametrize("name", QCONFIGS)
def test_tied_weights(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = Tied().eval(), torch.arange(12).reshape(3, 4)
    module = converted(model, (ids,), QCONFIGS[name])
    assert compute_sqnr(model(ids), module(ids)) > 30
    if name in ("per channel", "float16", "8-bit tables"):  # the same rule for both: one tensor
        state = module.state_dict()
        assert state["table.weight"].data_ptr() == state["decoder.weight"].data_ptr()


def test_one_linear_called_twice_and_bounds() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.clamp(self.linear(torch.relu(self.linear(x))), -0.2, 0.3)

    torch.manual_seed(0)
    model, x = Twice().eval(), randn(4, 8)
    module = converted(model, (x,), default_dynamic_qconfig)
    assert module.code.count("quantized_linear") >= 2
    assert compute_sqnr(model(x), module(x)) > 30 and module(x).max() <= 0.3


def test_vectors() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(8, 5).eval(), randn(8)
    for qconfig in (default_dynamic_qconfig, float16_dynamic_qconfig):
        assert converted(model, (x,), qconfig)(x).shape == (5,)


@compiled_for_others
def test_an_explicit_range_wins() -> None:
    model, x = nn.Linear(64, 4).eval(), randn(5, 64)
    weight = MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)

    def code(**settings: Any) -> str:
        activation = PlaceholderObserver.with_args(dtype=torch.quint8, is_dynamic=True, **settings)
        return str(converted(model, (x,), QConfig(activation, weight), engine="x86", isa="avx512_vnni").code)

    assert "True)" in code(reduce_range=True) and "True)" not in code() and "True)" not in code(reduce_range=False)
    assert "True)" in code(quant_min=0, quant_max=127)
    with pytest.raises(ConfigError, match="127"):
        code(quant_min=0, quant_max=15)


def test_float16_weights_that_overflow() -> None:
    model = nn.Linear(4, 4).eval()
    with torch.no_grad():
        model.weight[0, 0] = 1e6
    with pytest.raises(NumericsError, match="65504"):
        converted(model, (randn(2, 4),), float16_dynamic_qconfig)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # torch's word about its own speed
def test_a_projection_stays_float() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 6, proj_size=3)).eval()
    module = converted(model, (randn(3, 2, 4),), default_dynamic_qconfig)
    assert [row.kind for row in explain(module).rows] == ["int8 dynamic", "float"]
    assert any("proj_size" in r.text for r in remarks(module))


class Packed(nn.Module):
    """Sequences of several lengths through two layers, with states from outside."""

    def __init__(self, kind: Any, enforce_sorted: bool) -> None:
        super().__init__()
        self.first, self.second = kind(6, 8, 2, bidirectional=True, batch_first=True), kind(16, 5, bias=False)
        self.enforce_sorted = enforce_sorted
        self.eval()

    def forward(self, x: Tensor, lengths: Tensor, hidden: Tensor) -> Any:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=self.enforce_sorted)
        packed, end = self.first(packed, (hidden, hidden * 2) if isinstance(self.first, nn.LSTM) else hidden)
        packed, _ = self.second(packed)
        return pad_packed_sequence(packed, batch_first=True)[0], end


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("qconfig", [default_dynamic_qconfig, float16_dynamic_qconfig, None], ids=["int8", "float16", "float"])
def test_packed_sequences(qconfig: Any, kind: Any, enforce_sorted: bool, engine: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([5, 3, 2] if enforce_sorted else [2, 5, 3])
    model, inputs = Packed(kind, enforce_sorted), (randn(3, 5, 6), lengths, randn(4, 3, 8, seed=1) * 0.5)
    prepared = prepare_fx(model, everywhere(qconfig), inputs, engine=engine)
    module = convert_fx(prepared)
    got, want, real = (tensors(f(*inputs)) for f in (module, convert_to_reference_fx(prepared), model))
    for a, b, c in zip(got, want, real, strict=True):
        assert a.shape == c.shape and (a - b).abs().max() < 5e-3
        assert torch.equal(a, c) if qconfig is None else (a - c).abs().max() < 0.05
    kinds = {row.kind for row in explain(module).rows if row.op.endswith("packed")}
    assert kinds == {"float"} if qconfig is None else kinds <= {"int8 dynamic", "float16 weights"}
    artifact.save(module, tmp_path / "m.qc")
    assert same(tensors(artifact.load(tmp_path / "m.qc")(*inputs)), got)
    if engine == "x86":
        assert same(tensors(torch.jit.script(module)(*inputs)), got)
        shorter = (inputs[0][:2], torch.tensor([4, 1] if enforce_sorted else [1, 4]), inputs[2][:, :2])
        for a, c in zip(tensors(module(*shorter)), tensors(model(*shorter)), strict=True):
            assert a.shape == c.shape and (a - c).abs().max() < 0.05


def test_a_convolution_under_a_dynamic_qconfig_has_one_scale_a_channel() -> None:
    """Its weight is widened before it is used: one scale for all costs accuracy and saves nothing."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv1d(4, 6, 3), nn.ConvTranspose1d(6, 4, 3)).eval(), torch.randn(2, 4, 12)
    with torch.no_grad():
        model[0].weight[0] *= 300
        model[1].weight[0] /= 300  # one large channel, of which the model makes little
    module = converted(model, (x,), default_dynamic_qconfig)
    assert module.state_dict()["0.weight_scale"].shape == (6,) and module.state_dict()["1.weight_scale"].shape == (4,)
    single = converted(model, (x,), default_weight_only_qconfig)
    assert module.state_dict()["0.weight"].dtype is torch.int8 and single.state_dict()["0.weight_scale"].numel() == 1
    with torch.no_grad():
        assert compute_sqnr(model(x), module(x)) > compute_sqnr(model(x), single(x)) + 6


@pytest.mark.parametrize("layer", [nn.Linear(8, 4), nn.LSTM(8, 4), nn.GRU(8, 4)], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize(("size", "steps"), [(1.0, None), (0.02, None), (1e-3, 16), (1e-4, 1), (0.0, None)])
def test_a_range_below_what_dynamic_kernels_hold_is_noted(layer: nn.Module, size: float, steps: int | None) -> None:
    """torch's kernels choose no step below 6.1e-5: fewer than half of the steps are told, by the example's range."""
    x = torch.linspace(0, size, 40).reshape(5, 8)
    for engine in ENGINES:
        prepared = prepare_fx(layer.eval(), QConfigMapping().set_global(default_dynamic_qconfig), (x,), engine=engine)
        found = [r.text for r in remarks(convert_fx(prepared)) if r.code == "tiny-range"]
        assert found == [] if steps is None else len(found) == 1 and f"its input takes {steps} of " in found[0]
    assert not [r for r in remarks(convert_fx(prepared, check_parity=False)) if r.code == "tiny-range"]
