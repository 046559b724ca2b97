"""Activations, norms, pools and dropout of nn.quantized against float64, on every engine; saving, copying, scripting."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import CalibrationError, ConfigError, InputError
from qcompiler.fake_quantize import FakeQuantize
from qcompiler.nn import quantized as nnq
from qcompiler.observers import MinMaxObserver
from qcompiler.ops.table import OPS
from tests.int8_modules import ENGINES, activation, distance, real

X1, X2, X4 = (4, 8), (2, 6, 9), (2, 8, 6, 5)


def random_(module: nn.Module) -> nn.Module:
    """The module with parameters that are neither 1 nor 0."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.uniform_(parameter.requires_grad_(False), -0.5, 1.0)
    return module


NAMED: tuple[tuple[nn.Module, tuple[int, ...]], ...] = (
    (nn.ReLU(), X4),
    (nn.ReLU6(inplace=True), X4),
    (nn.Hardswish(), X4),
    (nn.LeakyReLU(0.2), X4),
    (nn.ELU(0.7), X4),
    (nn.Sigmoid(), X4),
    (nn.Softmax(1), X4),
    (nn.Softmax(-1), X2),
    (random_(nn.PReLU()), X4),
    (random_(nn.PReLU(8)), X4),
    (random_(nn.PReLU(8)), X1),
    (random_(nn.LayerNorm(9)), X2),
    (random_(nn.LayerNorm((6, 5), eps=1e-3)), X4),
    (nn.LayerNorm(9, elementwise_affine=False), X2),
    (random_(nn.LayerNorm(9, bias=False)), X2),
    (random_(nn.GroupNorm(2, 8)), X4),
    (nn.GroupNorm(4, 8, affine=False), X1),
    (random_(nn.InstanceNorm1d(6, affine=True)), X2),
    (nn.InstanceNorm1d(6, eps=1e-2), (6, 9)),
    (random_(nn.InstanceNorm2d(8, affine=True)), X4),
    (nn.InstanceNorm2d(8), (8, 6, 5)),
    (random_(nn.InstanceNorm3d(3, affine=True)), (2, 3, 4, 3, 5)),
    (nn.MaxPool2d(2), X4),
    (nn.MaxPool2d((3, 2), stride=1, padding=1, dilation=(1, 2), ceil_mode=True), X4),
    (nn.MaxPool2d(3, 2), (8, 6, 5)),
)
OTHERS: tuple[tuple[nn.Module, tuple[int, ...]], ...] = tuple(
    (m, X4) for m in (nn.SiLU(), nn.GELU("tanh"), nn.Mish(), nn.Tanh(), nn.Softplus(2.0), nn.CELU(0.5), nn.Hardsigmoid(), nn.SELU(),
                      nn.Softsign(), nn.LogSigmoid(), nn.Threshold(0.1, 0.5))
)  # fmt: skip
SAME = (nn.ReLU, nn.ReLU6, nn.MaxPool2d)
EXACT = (nn.ReLU, nn.MaxPool2d)


def _id(pair: tuple[nn.Module, tuple[int, ...]]) -> str:
    return f"{pair[0]}-{'x'.join(map(str, pair[1]))}"


def observed(module: nn.Module, x: Tensor) -> nn.Module:
    """A copy with an observer that saw its float result."""
    made = copy.deepcopy(module).eval()
    made.activation_post_process = MinMaxObserver()
    made.activation_post_process(module(x.dequantize()).detach())
    return made


def quantized(module: nn.Module, x: Tensor) -> Any:
    return getattr(nnq, type(module).__name__, nnq.Activation).from_float(observed(module, x))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pair", NAMED + OTHERS, ids=_id)
def test_within_one_quantum_of_float64(pair: tuple[nn.Module, tuple[int, ...]], engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.quantized, "engine", engine)
    module, shape = pair
    x = activation(*shape)
    made = quantized(module, x)
    inputs = [x, activation(*shape, scale=0.011, zero_point=0), activation(*shape, zero_point=255)]
    inputs += [x.contiguous(memory_format=torch.channels_last), activation(0, *shape[1:])] if len(shape) == 4 else []
    exact_module = copy.deepcopy(module).double()
    for value in inputs:
        got = made(value)
        raises = isinstance(module, nn.InstanceNorm2d) and not value.numel()  # torch's float one does, with weights
        expected = real(value) if raises else exact_module(real(value).clone()).detach()
        assert distance(got, expected) <= (0 if isinstance(module, EXACT) else 1)
        qparams = (value.q_scale(), value.q_zero_point()) if isinstance(module, SAME) else (made.scale, made.zero_point)
        assert (got.q_scale(), got.q_zero_point()) == qparams


@pytest.mark.parametrize("pair", NAMED + OTHERS, ids=_id)
def test_saved_copied_and_scripted_agree_bit_for_bit(pair: tuple[nn.Module, tuple[int, ...]]) -> None:
    module, shape = pair
    x = activation(*shape)
    made = quantized(module, x)
    expected = made(x).int_repr()
    twins: list[Any] = [copy.deepcopy(made), pickle.loads(pickle.dumps(made)), torch.jit.trace(made, (x,))]
    other = copy.deepcopy(made)  # of the same settings with other values
    for name, buffer in other._buffers.items():
        if buffer is not None:
            other._buffers[name] = torch.full_like(buffer, 3)
    assert set(made.state_dict()) == {n for n, b in made._buffers.items() if b is not None}
    other.load_state_dict(made.state_dict())
    twins.append(other)
    if len(shape) == made._RANKS[0] if made._RANKS else True:  # TorchScript takes the usual rank
        stream = io.BytesIO()
        torch.jit.save(torch.jit.script(made), stream)
        stream.seek(0)
        twins.append(torch.jit.load(stream))
    for twin in twins:
        assert torch.equal(twin(x).int_repr(), expected)


@pytest.mark.parametrize("pair", NAMED + OTHERS, ids=_id)
def test_a_float_tensor_is_refused_by_name(pair: tuple[nn.Module, tuple[int, ...]]) -> None:
    made = quantized(pair[0], activation(*pair[1]))
    made._qc_path = "features.3"
    with pytest.raises(InputError, match=rf"{made._get_name()}.*float32 tensor, not a quantized one") as caught:
        made(torch.zeros(pair[1]))
    assert "features.3" in str(caught.value) and "QuantStub" in str(caught.value)


def test_repr_shows_settings_and_qparams() -> None:
    x = activation(*X4)
    assert repr(nnq.LeakyReLU(0.1, 3, 0.2)) == "QuantizedLeakyReLU(negative_slope=0.2, scale=0.1, zero_point=3)"
    assert repr(nnq.Softmax(1, 0.1, 3)) == "QuantizedSoftmax(dim=1, scale=0.1, zero_point=3)"
    gelu = nnq.Activation("gelu", 0.1, 3, approximate="tanh")
    assert repr(gelu) == "QuantizedActivation(gelu, approximate='tanh', scale=0.1, zero_point=3)"
    norm = quantized(nn.GroupNorm(2, 8), x)
    assert repr(norm) == f"QuantizedGroupNorm(2, 8, eps=1e-05, affine=True, scale={norm.scale}, zero_point={norm.zero_point})"


def test_a_setter_changes_the_result() -> None:
    module, x = nnq.Hardswish(0.05, 10), activation(*X4)
    before = module(x)
    module.scale, module.zero_point = 0.02, 40
    after = module(x)
    assert (before.q_scale(), after.q_scale(), after.q_zero_point()) == (0.05, 0.02, 40)
    assert distance(after, nn.functional.hardswish(real(x))) <= 1


@pytest.mark.usefixtures("eight_bits")
def test_ranges_known_beforehand_need_no_observer() -> None:
    for module, scale, zero_point in ((nn.Sigmoid(), 1 / 256, 0), (nn.Softmax(1), 1 / 256, 0), (nn.Tanh(), 2 / 256, 128)):
        made = getattr(nnq, type(module).__name__, nnq.Activation).from_float(module)
        assert (made.scale, made.zero_point) == (scale, zero_point)


@pytest.mark.usefixtures("eight_bits")
def test_fake_quantize_and_torchs_observers_give_qparams() -> None:
    module = nn.Hardswish()
    module.activation_post_process = FakeQuantize()
    module.activation_post_process(torch.tensor([-1.0, 4.0]))
    made = nnq.Hardswish.from_float(module)
    assert (made.scale, made.zero_point) == (float(module.activation_post_process.scale), int(module.activation_post_process.zero_point))
    module.activation_post_process = torch.ao.quantization.MinMaxObserver(dtype=torch.quint8)
    module.activation_post_process(torch.tensor([-1.0, 4.0]))
    assert nnq.Hardswish.from_float(module).zero_point == 51


def test_from_float_says_what_is_missing_or_wrong() -> None:
    with pytest.raises(CalibrationError, match="nothing observed its result"):
        nnq.Hardswish.from_float(nn.Hardswish())
    unseen = nn.ELU()
    unseen.activation_post_process, unseen._qc_path = MinMaxObserver(), "block.act"
    with pytest.raises(CalibrationError, match=r"saw no data[\s\S]*block\.act"):
        nnq.ELU.from_float(unseen)
    with pytest.raises(ConfigError, match=r"nn\.quantized\.ELU does not stand for Tanh"):
        nnq.ELU.from_float(nn.Tanh())
    with pytest.raises(ConfigError, match="Linear is no function of single values"):
        nnq.Activation.from_float(nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="'conv2d' is no function of single values"):
        nnq.Activation("conv2d", 1.0, 0)
    with pytest.raises(ConfigError, match="tracks running statistics"):
        nnq.InstanceNorm2d.from_float(nn.InstanceNorm2d(3, track_running_stats=True))
    for make in (lambda: nnq.MaxPool2d(2, return_indices=True), lambda: nnq.MaxPool2d.from_float(nn.MaxPool2d(2, return_indices=True))):
        with pytest.raises(ConfigError, match="indices"):
            make()
    with pytest.raises(InputError, match="takes an input of 3 or 4 dimensions"):
        nnq.InstanceNorm2d(3, None, None, 1.0, 0)(activation(3, 4))


@pytest.mark.filterwarnings("ignore:Implicit dimension choice for softmax:UserWarning")
@pytest.mark.parametrize("shape", [X1, X2, X4, (9,)], ids=str)
def test_softmax_without_a_dimension_takes_torchs(shape: tuple[int, ...]) -> None:
    x = activation(*shape)
    module = nnq.Softmax(scale=1 / 256)
    for call in (module, torch.jit.script(module)):
        assert distance(call(x), nn.functional.softmax(real(x), None)) <= 1


def test_prelu_takes_quantized_and_float_slopes() -> None:
    module, x = nnq.PReLU(0.03, 100, 8), activation(*X4)
    slopes = torch.linspace(-0.5, 0.5, 8)
    for given in (slopes, torch.quantize_per_tensor(slopes, 1 / 128, 64, torch.quint8)):
        module.set_weight(given)
        assert distance(module(x), nn.functional.prelu(real(x), given.dequantize().double())) <= 1
    with pytest.raises(ConfigError, match="8 slopes"):
        module.set_weight(torch.zeros(3))


def test_dropout_passes_on_what_it_gets() -> None:
    module = nnq.Dropout.from_float(nn.Dropout(0.9).train())
    for x in (activation(*X1), torch.randn(3)):
        assert module(x) is x
        assert torch.equal(torch.jit.script(module)(x).dequantize(), x.dequantize())
    assert repr(module) == "QuantizedDropout(p=0.9, inplace=False)"


def test_every_function_of_single_values_has_a_class() -> None:
    classes = {form.cls for row in OPS.rows.values() if row.elementwise for form in row.modules}
    taken: list[Any] = []
    for name in nnq.__all__:
        found = getattr(getattr(nnq, name), "_FLOAT_MODULE", None)
        taken += found if isinstance(found, tuple) else [found]
    assert classes <= set(taken)
    assert all(taken.count(cls) == 1 for cls in classes)


def test_constructor_signatures_are_those_of_torch() -> None:
    import inspect

    theirs = torch.ao.nn.quantized
    for name in ("ReLU6", "Hardswish", "LeakyReLU", "ELU", "PReLU", "Sigmoid", "Softmax", "LayerNorm", "GroupNorm", "InstanceNorm1d",
                 "InstanceNorm2d", "InstanceNorm3d", "Dropout", "Quantize", "DeQuantize", "QFunctional", "MaxPool2d"):  # fmt: skip
        wanted, got = inspect.signature(getattr(theirs, name)), inspect.signature(getattr(nnq, name))
        assert list(got.parameters) == list(wanted.parameters), name


@pytest.mark.usefixtures("eight_bits")
@pytest.mark.parametrize("name", ["Hardswish", "ELU", "LeakyReLU", "Sigmoid", "LayerNorm"])
def test_agrees_with_torch_where_torch_is_right(name: str) -> None:
    module, shape = next(pair for pair in NAMED if type(pair[0]).__name__ == name)
    x = activation(*shape)
    float_module = observed(module, x)
    got, wanted = getattr(nnq, name).from_float(float_module)(x), getattr(torch.ao.nn.quantized, name).from_float(float_module)(x)
    assert int((got.int_repr().int() - wanted.int_repr().int()).abs().max()) <= 1
