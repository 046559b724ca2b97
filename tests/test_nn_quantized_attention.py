"""nn.quantizable and nn.quantized MultiheadAttention: equal to nn.MultiheadAttention in float, close in int8."""

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

N, L, S = 3, 5, 4
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"batch_first": True},
    {"kdim": 6, "vdim": 10},
    {"bias": False, "batch_first": True, "add_bias_kv": True},
    {"add_bias_kv": True, "add_zero_attn": True, "kdim": 6},
)
BOOLEAN = torch.tensor([[0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 1]]).bool()
PADDING = torch.tensor([[0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()
CALLS: tuple[dict[str, Any], ...] = (
    {},
    {"need_weights": False},
    {"average_attn_weights": False},
    {"attn_mask": BOOLEAN},
    {"attn_mask": torch.linspace(-2, 1, N * 2 * L * S).reshape(N * 2, L, S)},
    {"attn_mask": BOOLEAN, "is_causal": True},
    {"key_padding_mask": PADDING},
    {"key_padding_mask": torch.linspace(-1, 1, N * S).reshape(N, S), "attn_mask": torch.linspace(-2, 1, L * S).reshape(L, S)},
)


def _id(call: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v.dtype}{tuple(v.shape)}" if isinstance(v, Tensor) else f"{k}={v}" for k, v in call.items())


def case(settings: dict[str, Any], engine: str = "x86") -> tuple[nn.MultiheadAttention, list[Tensor]]:
    """A module with a qconfig; query, key, value."""
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, **settings).eval()
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    module.qconfig = get_default_qconfig(engine)
    sizes = ((L, 8), (S, settings.get("kdim", 8)), (S, settings.get("vdim", 8)))
    return module, [torch.randn(N, n, e) if settings.get("batch_first") else torch.randn(n, N, e) for n, e in sizes]


def quantize(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x, 0.03 * 255 / STEPS, (STEPS + 1) // 2, torch.quint8)


@pytest.mark.parametrize("call", CALLS, ids=_id)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_float_form_equals_torchs(settings: dict[str, Any], call: dict[str, Any]) -> None:
    module, inputs = case(settings)
    ours = nnqa.MultiheadAttention.from_float(module)
    (a, weights), (b, ours_weights) = module(*inputs, **call), ours(*inputs, **call)
    assert a.shape == b.shape and torch.allclose(a, b, atol=1e-5)
    assert (weights is None) == (ours_weights is None)
    assert weights is None or torch.allclose(weights, ours_weights, atol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_one_sequence_without_batch(settings: dict[str, Any]) -> None:
    module, inputs = case(settings)
    ours = nnqa.MultiheadAttention.from_float(module)
    alone = [t[0] if settings.get("batch_first") else t[:, 0] for t in inputs]
    for call in ({}, {"key_padding_mask": PADDING[0]}, {"attn_mask": BOOLEAN}):
        for a, b in zip(module(*alone, **call), ours(*alone, **call)):
            assert a.shape == b.shape and torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_int8_is_close_to_float(settings: dict[str, Any], engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.quantized, "engine", engine)
    module, inputs = case(settings, engine)
    observed = nnqa.MultiheadAttention.from_float(module)
    for call in CALLS:
        observed(*inputs, **call)
    made = nnq.MultiheadAttention.from_observed(observed)
    quantized = [quantize(t) for t in inputs]
    for call in CALLS:
        exact, weights = module(*(q.dequantize() for q in quantized), **call)
        got, got_weights = made(*quantized, **call)
        assert got.dtype is torch.quint8 and compute_sqnr(exact, got) > 25 - BIT
        assert weights is None or (weights - got_weights.dequantize()).abs().max() < 4 / 256


def test_saved_copied_and_scripted_agree_bit_for_bit() -> None:
    for settings in SETTINGS:
        module, inputs = case(settings)
        observed = nnqa.MultiheadAttention.from_float(module)
        observed(*inputs)
        made, q = nnq.MultiheadAttention.from_observed(observed), [quantize(t) for t in inputs]
        call = {"attn_mask": BOOLEAN, "key_padding_mask": PADDING}
        expected = [t.int_repr() for t in made(*q, **call)]
        stream = io.BytesIO()
        torch.jit.save(torch.jit.script(made), stream)
        stream.seek(0)
        observed(*(t * 2 for t in inputs))
        fresh = nnq.MultiheadAttention.from_observed(observed)
        fresh.load_state_dict(made.state_dict())
        for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), torch.jit.load(stream), fresh):
            assert all(torch.equal(a, b.int_repr()) for a, b in zip(expected, twin(*q, **call)))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_dequantize_gives_the_float_module_back(settings: dict[str, Any]) -> None:
    module, inputs = case(settings)
    observed = nnqa.MultiheadAttention.from_float(module)
    observed(*inputs)
    back = nnq.MultiheadAttention.from_observed(observed).dequantize()
    assert isinstance(back, nn.MultiheadAttention)
    assert back.state_dict().keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        assert torch.allclose(back.state_dict()[name], value, atol=0.5 / 127)


class Block(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), head

    def forward(self, x: Tensor) -> Tensor:
        x = self.quant(x)
        return self.dequant(self.head(self.attention(x, x, x)[0]))


def test_prepare_and_convert_take_attention() -> None:
    torch.manual_seed(0)
    model, data = Block(nn.Linear(8, 3)).eval(), torch.randn(4, 6, 8)
    model.qconfig = get_default_qconfig("x86")
    prepared = prepare(model)
    prepared(data)
    converted = convert(prepared)
    assert isinstance(converted.attention, nnq.MultiheadAttention)
    assert compute_sqnr(model(data), converted(data)) > 25
    assert torch.equal(torch.jit.script(converted)(data), converted(data))


def test_training_with_fake_quantization() -> None:
    torch.manual_seed(0)
    model, data, target = Block(nn.Identity()).train(), torch.randn(4, 6, 8), torch.rand(4, 6, 8) - 0.5
    model.qconfig = get_default_qat_qconfig("x86")
    prepared = prepare_qat(model)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(nn.functional.mse_loss(prepared(data), target))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        expected, got = prepared.eval()(data), convert(prepared)(data)
    assert compute_sqnr(expected, got) > 35


def test_a_transformer_layer_runs_with_it() -> None:
    """Its fused path would read weights past our forward: it must not be taken."""
    torch.manual_seed(0)
    layer, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(2, 5, 8)
    with torch.no_grad():
        expected = layer(x)
        layer.self_attn.qconfig = get_default_qconfig("x86")
        layer.self_attn = nnqa.MultiheadAttention.from_float(layer.self_attn)
        assert torch.allclose(layer(x), expected, atol=1e-5)
    assert layer.self_attn.linear_Q.activation_post_process.observed


def test_what_is_refused_says_why() -> None:
    module, inputs = case({})
    with pytest.raises(ConfigError, match="cannot be split in 3 heads"):
        nnqa.MultiheadAttention(8, 3)
    with pytest.raises(ConfigError, match=r"stands for nn\.MultiheadAttention, not for Linear"):
        nnqa.MultiheadAttention.from_float(nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="has no qconfig"):
        nnqa.MultiheadAttention.from_float(nn.MultiheadAttention(8, 2).eval())
    with pytest.raises(ConfigError, match=r"quantized\.MultiheadAttention is not made from a float module"):
        nnq.MultiheadAttention.from_float(module)
    observed = nnqa.MultiheadAttention.from_float(module)
    with pytest.raises(CalibrationError, match="saw no data"):
        nnq.MultiheadAttention.from_observed(observed)
    observed(*inputs)
    with pytest.raises(InputError, match="is_causal"):
        observed(*inputs, is_causal=True)
    with pytest.raises(InputError, match="not a quantized one"):
        nnq.MultiheadAttention.from_observed(observed)(*inputs)
