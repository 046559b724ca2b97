"""nn.quantized.dynamic: modules with quantized weights on float tensors."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from qcompiler.backends.torch.program.once import quantized_engine
from qcompiler.config.qconfig import QConfig, default_dynamic_qconfig, float16_dynamic_qconfig, per_channel_dynamic_qconfig
from qcompiler.errors import ConfigError, InputError
from qcompiler.nn import intrinsic
from qcompiler.nn.intrinsic.quantized.dynamic import LinearReLU
from qcompiler.nn.quantized import dynamic
from qcompiler.ops import recurrent
from qcompiler.ops.reference import dequantize_weight, dynamic_quantize_dequantize
from tests.cpu import STEPS
from tests.flow import ENGINES, randn
from tests.test_dynamic_graph import tensors

# float module, our class, inputs
CASES: dict[str, tuple[Any, Any, Any]] = {
    "Linear": (lambda: nn.Linear(6, 8), dynamic.Linear, lambda: (randn(2, 3, 6),)),
    "Linear vector": (lambda: nn.Linear(6, 8, bias=False), dynamic.Linear, lambda: (randn(6),)),
    "LinearReLU": (lambda: intrinsic.LinearReLU(nn.Linear(6, 8), nn.ReLU()), LinearReLU, lambda: (randn(3, 6),)),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, padding="same", bias=False), dynamic.Conv1d, lambda: (randn(2, 4, 9),)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2, padding_mode="reflect"), dynamic.Conv2d, lambda: (randn(2, 4, 9, 8),)),
    "Conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3), dilation=2), dynamic.Conv3d, lambda: (randn(2, 6, 7, 8),)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 3, 2), dynamic.ConvTranspose1d, lambda: (randn(2, 4, 9),)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, output_padding=1, groups=2), dynamic.ConvTranspose2d,
                        lambda: (randn(2, 4, 5, 6),)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 3, 2), dynamic.ConvTranspose3d, lambda: (randn(1, 2, 3, 4, 3),)),
    "LSTM": (lambda: nn.LSTM(6, 8, 2, bidirectional=True), dynamic.LSTM,
             lambda: (randn(5, 3, 6), (randn(4, 3, 8, seed=1) * 0.5, randn(4, 3, 8, seed=2)))),
    "LSTM, three layers, no states": (lambda: nn.LSTM(6, 8, 3, bias=False, batch_first=True, dropout=0.3), dynamic.LSTM,
                                      lambda: (randn(3, 5, 6),)),
    "LSTM unbatched": (lambda: nn.LSTM(6, 8), dynamic.LSTM, lambda: (randn(5, 6), (randn(1, 8) * 0.5, randn(1, 8)))),
    "GRU": (lambda: nn.GRU(6, 8, 2, bidirectional=True), dynamic.GRU, lambda: (randn(5, 3, 6), randn(4, 3, 8, seed=1) * 0.5)),
    "GRU unbatched": (lambda: nn.GRU(6, 8, bias=False), dynamic.GRU, lambda: (randn(5, 6),)),
    "LSTMCell": (lambda: nn.LSTMCell(6, 8), dynamic.LSTMCell, lambda: (randn(3, 6), (randn(3, 8) * 0.5, randn(3, 8, seed=1)))),
    "GRUCell": (lambda: nn.GRUCell(6, 8, bias=False), dynamic.GRUCell, lambda: (randn(3, 6),)),
    "GRUCell unbatched": (lambda: nn.GRUCell(6, 8), dynamic.GRUCell, lambda: (randn(6), randn(8) * 0.5)),
    "RNNCell": (lambda: nn.RNNCell(6, 8), dynamic.RNNCell, lambda: (randn(3, 6), randn(3, 8) * 0.5)),
    "RNNCell relu": (lambda: nn.RNNCell(6, 8, nonlinearity="relu"), dynamic.RNNCell, lambda: (randn(3, 6),)),
}  # fmt: skip
QCONFIGS = {"int8": default_dynamic_qconfig, "per channel": per_channel_dynamic_qconfig, "float16": float16_dynamic_qconfig}


def made(name: str, qconfig: QConfig | None = None, engine: str = "x86") -> tuple[Any, Any, Any]:
    """(float module, its dynamic form, inputs)"""
    torch.manual_seed(0)
    make, cls, inputs = CASES[name]
    module = make().eval()
    for m in module.modules():
        m.qconfig = qconfig
    with quantized_engine(engine):
        return module, cls.from_float(module), inputs()


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", QCONFIGS)
@pytest.mark.parametrize("name", CASES)
def test_close_to_float(name: str, kind: str, engine: str) -> None:
    module, quantized, inputs = made(name, QCONFIGS[kind], engine)
    for got, want in zip(tensors(quantized(*inputs)), tensors(module(*inputs)), strict=True):
        assert got.shape == want.shape and got.dtype is torch.float32
        assert (got - want).abs().max() < (2e-3 if kind == "float16" else 0.03) * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("kind", ["int8", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_copies_scripts_and_files(name: str, kind: str) -> None:
    _, quantized, inputs = made(name, QCONFIGS[kind])
    want = quantized(*inputs)
    scripted = torch.jit.script(quantized)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    traced = torch.jit.trace(quantized, inputs)
    saved = io.BytesIO()
    torch.save(quantized, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    for other in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized)), loaded, scripted, torch.jit.load(file), traced):
        assert same(other(*inputs), want)


@pytest.mark.parametrize("kind", QCONFIGS)
@pytest.mark.parametrize("name", CASES)
def test_state_dict_into_a_fresh_instance(name: str, kind: str) -> None:
    _, quantized, inputs = made(name, QCONFIGS[kind])
    with torch.no_grad():
        other = copy.deepcopy(CASES[name][0]()).eval()
        for p in other.parameters():
            p.mul_(0.5)
        for m in other.modules():
            m.qconfig = default_dynamic_qconfig if kind == "per channel" else QCONFIGS[kind]
        fresh = CASES[name][1].from_float(other)
    assert not same(fresh(*inputs), quantized(*inputs))
    state = quantized.state_dict()
    assert not any(t.is_quantized for t in state.values())
    fresh.load_state_dict(pickle.loads(pickle.dumps(state)))
    assert same(fresh(*inputs), quantized(*inputs))


def test_a_state_dict_of_the_other_dtype_is_refused() -> None:
    half, int8 = made("LSTM", float16_dynamic_qconfig)[1], made("LSTM")[1]
    with pytest.raises(ConfigError, match="float16"):
        int8.load_state_dict(half.state_dict(), strict=False)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("form", ["batch", "packed", "packed, any order"])
def test_layers_against_float64(form: str, kind: Any, layers: int, bidirectional: bool) -> None:
    torch.manual_seed(layers)
    module = kind(6, 8, layers, bidirectional=bidirectional)
    quantized = getattr(dynamic, kind.__name__).from_float(module)
    sides = quantized._sides()
    weights = [dequantize_weight(*(t.double() for t in quantized._int8(f"weight_{s}")), None).double() for s in sides]
    biases = [quantized.get_bias()[f"bias_{s}"].double() for s in sides]
    settings: Any = {"bidirectional": bidirectional, "activation_range": (0, STEPS)}
    states = [randn(layers * (1 + bidirectional), 3, 8, seed=k) * 0.5 for k in range(2 if kind is nn.LSTM else 1)]
    doubles = [s.double() for s in states]
    if form == "batch":
        x: Any = randn(5, 3, 6)
        want = getattr(recurrent, kind.__name__.lower())(x.double(), *doubles, weights, biases, **settings)
    else:
        lengths = torch.tensor([5, 3, 2] if form == "packed" else [2, 5, 3])
        x = pack_padded_sequence(randn(5, 3, 6), lengths, enforce_sorted=form == "packed")
        fields = (x.data.double(), *x[1:])
        want = getattr(recurrent, f"{kind.__name__.lower()}_packed")(*fields, *doubles, weights, biases, **settings)
    output, end = quantized(x, tuple(states) if kind is nn.LSTM else states[0])
    if form != "batch":
        assert type(output) is type(x) and torch.equal(output.batch_sizes, x.batch_sizes)
        output = output.data
        float_output, float_end = module(x, tuple(states) if kind is nn.LSTM else states[0])
        assert (output - float_output.data).abs().max() < 0.03 and (tensors(end)[0] - tensors(float_end)[0]).abs().max() < 0.03
    for got, reference in zip(tensors((output, end)), tensors(want), strict=True):
        # one step of 255 where float32 and float64 states round to different sides
        assert (got - reference).abs().max() < 2e-3 and (got - reference).abs().median() < 1e-6


def test_linear_against_float64() -> None:
    module, quantized, (x,) = made("Linear")
    values, scale, zero_point = quantized._int8("weight")
    weight = (values.double() - zero_point) * scale
    want = nn.functional.linear(dynamic_quantize_dequantize(x.double(), 0, STEPS), weight, module.bias.double())
    assert (quantized(x) - want).abs().max() < 1e-5


def test_a_sequence_of_one_and_an_empty_batch() -> None:
    _, lstm, _ = made("LSTM")
    assert lstm(pack_sequence([randn(4, 6)]))[0].data.shape == (4, 16)
    output, (hidden, _) = lstm(torch.empty(5, 0, 6))
    assert output.shape == (5, 0, 16) and hidden.shape == (4, 0, 8)
    assert made("LSTMCell")[1](torch.empty(0, 6))[0].shape == (0, 8)
    assert made("Linear")[1](torch.empty(0, 6)).shape == (0, 8)


def test_wrong_inputs_are_named() -> None:
    _, lstm, _ = made("LSTM")
    lstm._qc_path = "encoder.lstm"
    quint8 = torch._make_per_tensor_quantized_tensor(torch.zeros(5, 3, 6, dtype=torch.uint8), 1.0, 0)
    wrong: list[tuple[Any, Any, str]] = [
        (quint8, None, "DeQuantStub"), (torch.zeros(5, 3, 6).double(), None, "float64"), (torch.zeros(5, 3, 7), None, "6"),
        (torch.zeros(5, 3, 6), (torch.zeros(4, 2, 8), torch.zeros(4, 3, 8)), "hidden state"),
        (torch.zeros(5, 3, 6), (torch.zeros(4, 3, 8), torch.zeros(4, 3, 9)), "cell state"), ("text", None, "str"),
    ]  # fmt: skip
    for x, states, text in wrong:
        with pytest.raises(InputError, match=text) as caught:
            lstm(x, states)
        assert caught.value.where.module_path == "encoder.lstm"
    with pytest.raises(InputError, match="hidden state"):
        made("GRUCell")[1](torch.zeros(3, 6), torch.zeros(3, 9))
    with pytest.raises(InputError, match="dimensions"):
        made("Conv2d")[1](torch.zeros(3))
    with pytest.raises(InputError, match="features in the last dimension"):
        made("Linear")[1](torch.zeros(3, 99))


def test_what_has_no_dynamic_form() -> None:
    with pytest.raises(ConfigError, match="proj_size"):
        dynamic.LSTM.from_float(nn.LSTM(4, 6, proj_size=3))
    with pytest.raises(ConfigError, match=r"nn\.Linear"):
        dynamic.Linear.from_float(nn.Conv2d(1, 1, 1))
    with pytest.raises(ConfigError, match="quint8"):
        dynamic.Linear(3, 4, dtype=torch.quint8)


def test_weights_by_hand() -> None:
    module, quantized, inputs = made("LSTM")
    fresh = dynamic.LSTM(6, 8, 2, bidirectional=True)
    fresh.set_weight_bias({**quantized.get_weight(), **quantized.get_bias()})
    assert same(fresh(*inputs), quantized(*inputs))
    linear = dynamic.Linear(6, 8)
    weight = torch.quantize_per_tensor(randn(8, 6), 0.02, 0, torch.qint8)
    linear.set_weight_bias(weight, randn(8))
    assert torch.equal(linear.weight().int_repr(), weight.int_repr()) and linear.bias() is not None
    with pytest.raises(ConfigError, match="qint8 tensor of"):
        linear.set_weight_bias(torch.quantize_per_tensor(randn(8, 5), 0.02, 0, torch.qint8), None)
    assert module is not None


def test_repr_has_the_qparams() -> None:
    assert "scale=" in repr(made("LSTM")[1]) and "DynamicQuantizedLSTM(6, 8, num_layers=2" in repr(made("LSTM")[1])
    assert "scales=" in repr(made("Linear", per_channel_dynamic_qconfig)[1]) and "float16" in repr(made("GRU", float16_dynamic_qconfig)[1])


def test_same_results_as_torch_ao_on_seven_bits() -> None:
    """torch.ao always rounds to 127 steps; told to do so, we agree with it (a tie may fall on another step)."""
    import torch.ao.nn.quantized.dynamic as theirs
    from torch.ao.quantization import default_dynamic_qconfig as their_qconfig

    torch.manual_seed(0)
    for kind, x in ((nn.LSTM(6, 8, 2), randn(5, 3, 6)), (nn.GRU(6, 8), randn(5, 3, 6)), (nn.Linear(6, 8), randn(3, 6)),
                    (nn.LSTMCell(6, 8), randn(3, 6))):  # fmt: skip
        module: Any = kind.eval()
        module.qconfig = their_qconfig
        want = getattr(theirs, type(module).__name__).from_float(module)(x)
        module.qconfig = None
        ours = getattr(dynamic, type(module).__name__).from_float(module)
        ours.reduce_range = True
        ours.rebuild()
        for a, b in zip(tensors(ours(x)), tensors(want), strict=True):
            assert (a - b).abs().max() < 2e-3 and (a - b).abs().median() < 1e-6


@pytest.mark.parametrize(
    ("cls", "mod"),
    [
        (dynamic.Linear, nn.Sequential(nn.Linear(3, 4), nn.Tanh())),
        (dynamic.Linear, nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))),
        (dynamic.Conv2d, nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())),
        (LinearReLU, nn.Linear(3, 4)),
    ],
    ids=str,
)
def test_a_part_that_would_be_lost_is_refused(cls: Any, mod: nn.Module) -> None:
    with pytest.raises(ConfigError, match="from_float takes an"):
        cls.from_float(mod)


@pytest.mark.parametrize(("name", "value"), [("padding_mode", "mirror"), ("padding", "all"), ("groups", 2)])
def test_settings_of_convolutions_are_checked(name: str, value: Any) -> None:
    with pytest.raises(ConfigError):
        dynamic.Conv2d(3, 4, 1, **{name: value})
