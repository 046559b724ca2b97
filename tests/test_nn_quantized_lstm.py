"""nn.quantizable and nn.quantized LSTM and LSTMCell: equal to nn.LSTM in float, close in int8, states in and out, scripting."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler.config.qconfig import get_default_qat_qconfig, get_default_qconfig
from qcompiler.debug.metrics import compute_sqnr
from qcompiler.errors import CalibrationError, ConfigError, InputError
from qcompiler.nn import quantizable as nnqa
from qcompiler.nn import quantized as nnq
from qcompiler.quantization import DeQuantStub, QuantStub, convert, prepare, prepare_qat
from tests.cpu import BIT, STEPS
from tests.int8_modules import ENGINES

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 3, "batch_first": True, "bias": False},
    {"bidirectional": True, "batch_first": True},
)
Case = tuple[nn.LSTM, Tensor, tuple[Tensor, Tensor]]


def weighted(module: Any) -> Any:
    """With weights that make states of a trained network's size."""
    for parameter in module.parameters():
        nn.init.uniform_(parameter.requires_grad_(False), -0.8, 0.8)
    return module.eval()


def case(settings: dict[str, Any], engine: str = "x86") -> Case:
    """An LSTM with a qconfig, an input of 6 steps by 3 sequences, a state."""
    torch.manual_seed(0)
    module = weighted(nn.LSTM(5, 7, **settings))
    module.qconfig = get_default_qconfig(engine)
    batch = 6 if settings.get("batch_first") else 3
    states = settings.get("num_layers", 1) * (1 + settings.get("bidirectional", False))
    return module, torch.randn(6, 3, 5), (torch.rand(states, batch, 7) - 0.5, torch.rand(states, batch, 7) - 0.5)


def quantize(x: Tensor, scale: float = 0.03) -> Tensor:
    return torch.quantize_per_tensor(x, scale * 255 / STEPS, (STEPS + 1) // 2, torch.quint8)


def calibrated(settings: dict[str, Any], engine: str = "x86", **more: Any) -> tuple[Any, Case]:
    module, x, state = case(settings, engine)
    observed = nnqa.LSTM.from_float(module, **more)
    observed(x)
    observed(x, state)
    return observed, (module, x, state)


@pytest.mark.parametrize("split_gates", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_float_form_equals_torchs(settings: dict[str, Any], split_gates: bool) -> None:
    module, x, state = case(settings)
    ours = nnqa.LSTM.from_float(module, split_gates=split_gates)
    for given in (None, state):
        for a, b in zip(torch.utils._pytree.tree_leaves(module(x, given)), torch.utils._pytree.tree_leaves(ours(x, given))):
            assert a.shape == b.shape
            assert torch.allclose(a, b, atol=1e-5)
    sequence, alone = x[:, 0], (state[0][:, 0], state[1][:, 0])
    assert torch.allclose(module(sequence, alone)[0], ours(sequence, alone)[0], atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_int8_is_close_to_float(settings: dict[str, Any], engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.quantized, "engine", engine)
    observed, (module, x, state) = calibrated(settings, engine)
    made = nnq.LSTM.from_observed(observed)
    q = quantize(x)
    for given in (None, state):
        exact, (h, c) = module(q.dequantize(), given)
        got, (gh, gc) = made(q, given)
        assert got.dtype is torch.quint8 and got.shape == exact.shape and gh.shape == h.shape
        assert min(compute_sqnr(exact, got), compute_sqnr(h, gh), compute_sqnr(c, gc)) > 20 - BIT
    # a second sequence that goes on from the first one's quantized state; each call anew
    first, again = made(q), made(q)
    assert torch.equal(first[0].int_repr(), again[0].int_repr())
    assert compute_sqnr(module(q.dequantize(), module(q.dequantize())[1])[0], made(q, first[1])[0]) > 20


def test_gates_with_qparams_of_their_own_are_more_accurate() -> None:
    results = []
    for split_gates in (False, True):
        observed, (module, x, _) = calibrated({}, split_gates=split_gates)
        q = quantize(x)
        results.append(compute_sqnr(module(q.dequantize())[0], nnq.LSTM.from_observed(observed)(q)[0]))
    assert results[1] > results[0]


@pytest.mark.parametrize("split_gates", [False, True])
@pytest.mark.parametrize("settings", SETTINGS[1:3], ids=str)
def test_saved_copied_and_scripted_agree_bit_for_bit(settings: dict[str, Any], split_gates: bool) -> None:
    observed, (_, x, state) = calibrated(settings, split_gates=split_gates)
    made, q = nnq.LSTM.from_observed(observed), quantize(x)
    expected = [t.int_repr() for t in torch.utils._pytree.tree_leaves(made(q, state))]
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(made), stream)
    stream.seek(0)
    torch.manual_seed(1)
    other = nnqa.LSTM.from_float(nn.LSTM(5, 7, **settings).eval(), observed.qconfig, split_gates)
    other(x)  # other weights, other ranges
    fresh = nnq.LSTM.from_observed(other)
    fresh.load_state_dict(made.state_dict())
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), torch.jit.load(stream), fresh):
        got = torch.utils._pytree.tree_leaves(twin(q, state))
        assert all(torch.equal(a, b.int_repr()) for a, b in zip(expected, got))
    assert not any("activation_post_process" in key for key in made.state_dict())
    assert all(not t.is_quantized for t in made.state_dict().values())


def test_the_float_form_scripts() -> None:
    module, x, state = case(SETTINGS[1])
    ours = nnqa.LSTM(5, 7, 2, bidirectional=True)
    assert torch.allclose(torch.jit.script(ours)(x, state)[0], ours(x, state)[0], atol=1e-6)
    assert module(x)[0].shape == ours(x)[0].shape


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("split_gates", [False, True])
def test_cell(split_gates: bool, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.quantized, "engine", engine)
    torch.manual_seed(0)
    module = weighted(nn.LSTMCell(5, 7))
    module.qconfig = get_default_qconfig(engine)
    x, state = torch.randn(3, 5), (torch.rand(3, 7) - 0.5, torch.rand(3, 7) - 0.5)
    observed = nnqa.LSTMCell.from_float(module, split_gates=split_gates)
    for given in (None, state):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(module(x, given), observed(x, given)))
    made = nnq.LSTMCell.from_observed(observed)
    for value, given in ((x, None), (x, state), (x[0], (state[0][0], state[1][0]))):
        q = quantize(value)
        assert min(compute_sqnr(a, b) for a, b in zip(module(q.dequantize(), given), made(q, given))) > 20
    assert torch.equal(torch.jit.script(made)(quantize(x))[0].int_repr(), made(quantize(x))[0].int_repr())


class Tagger(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.lstm, self.head = nn.LSTM(5, 7, 2, batch_first=True), head

    def forward(self, x: Tensor) -> Tensor:
        result, _ = self.lstm(self.quant(x))
        return self.dequant(self.head(result))


def test_prepare_and_convert_take_an_lstm() -> None:
    torch.manual_seed(0)
    model, data = Tagger(nn.Linear(7, 3)).eval(), torch.randn(4, 6, 5)
    model.qconfig = get_default_qconfig("x86")
    prepared = prepare(model)
    prepared(data)
    converted = convert(prepared)
    assert isinstance(converted.lstm, nnq.LSTM)
    assert compute_sqnr(model(data), converted(data)) > 20
    assert repr(converted.lstm).startswith("QuantizedLSTM(\n  5, 7, num_layers=2, batch_first=True, bidirectional=False")


def test_training_with_fake_quantization() -> None:
    torch.manual_seed(0)
    model, data, target = Tagger(nn.Identity()).train(), torch.randn(4, 6, 5), torch.full((4, 6, 7), 0.3)
    model.qconfig = get_default_qat_qconfig("x86")
    prepared = prepare_qat(model)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=1.0)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(nn.functional.mse_loss(prepared(data), target))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        expected, got = prepared.eval()(data), convert(prepared)(data)
    assert compute_sqnr(expected, got) > 35 - BIT


def test_what_is_refused_says_why() -> None:
    module, x, _ = case({})
    qconfig = module.qconfig
    with pytest.raises(ConfigError, match="not for an LSTM with proj_size"):
        nnqa.LSTM.from_float(nn.LSTM(5, 7, proj_size=3), qconfig)
    with pytest.raises(ConfigError, match="not for GRU"):
        nnqa.LSTM.from_float(nn.GRU(5, 7), qconfig)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="has no qconfig"):
        nnqa.LSTM.from_float(nn.LSTM(5, 7).eval())
    with pytest.raises(ConfigError, match="dropout is a probability"):
        nnqa.LSTM(5, 7, dropout=2.0)
    with pytest.raises(ConfigError, match=r"quantized\.LSTM is not made from a float module"):
        nnq.LSTM.from_float(module)
    with pytest.raises(ConfigError, match=r"takes an observed quantizable\.LSTM, quantizable\.LSTMCell, not LSTM"):
        nnq.LSTM.from_observed(module)
    with pytest.raises(CalibrationError, match=r"saw no data[\s\S]*net\.lstm\.layers\.0\.layer_fw\.cell\.igates"):
        module._qc_path = "net.lstm"
        nnq.LSTM.from_observed(nnqa.LSTM.from_float(module.eval()))
    observed, _ = calibrated({})
    with pytest.raises(CalibrationError, match="NaN"):
        observed(torch.full_like(x, float("nan")))
    made = nnq.LSTM.from_observed(observed)
    with pytest.raises(InputError, match=r"takes \(T, N, 5\) or \(T, 5\), got \(6, 3, 4\)"):
        made(quantize(torch.zeros(6, 3, 4)))
    with pytest.raises(InputError, match="PackedSequence"):
        made(nn.utils.rnn.pack_padded_sequence(x, torch.tensor([6, 4, 2])))
    with pytest.raises(InputError, match="not a quantized one"):
        made(x)


def test_dropout_works_between_layers_in_training() -> None:
    torch.manual_seed(0)
    module = nnqa.LSTM(5, 7, 2, dropout=0.5)
    x = torch.randn(6, 3, 5)
    assert not torch.equal(module(x)[0], module(x)[0])
    module.eval()
    assert torch.equal(module(x)[0], module(x)[0])


def test_constructor_signatures_are_those_of_torch() -> None:
    import inspect

    theirs = torch.ao.nn.quantizable
    for name in ("LSTM", "LSTMCell", "MultiheadAttention"):
        assert list(inspect.signature(getattr(nnqa, name)).parameters) == list(inspect.signature(getattr(theirs, name)).parameters)
