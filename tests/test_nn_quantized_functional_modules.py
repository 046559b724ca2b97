"""FloatFunctional, QFunctional, Quantize, DeQuantize: values, qparams, the graph flow through them, saving and scripting."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.errors import CalibrationError, ConfigError, InputError
from qcompiler.nn.quantized import DeQuantize, FloatFunctional, FXFloatFunctional, QFunctional, Quantize
from qcompiler.observers import MinMaxObserver
from tests.flow import QUANTIZED
from tests.int8_modules import ENGINES, activation, distance, real


def functional(scale: float = 0.05, zero_point: int = 120) -> QFunctional:
    made = QFunctional()
    made.scale, made.zero_point = scale, zero_point
    return made


BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "mul": torch.mul,
    "add_relu": lambda x, y: torch.relu(x + y),
    "matmul": torch.matmul,
    "cat": lambda x, y: torch.cat([x, y], 1),
}
SHAPES = {
    "equal": ((2, 8, 5, 5), (2, 8, 5, 5)),
    "one channel each": ((2, 8, 5, 5), (2, 8, 1, 1)),
    "small first": ((2, 8, 1, 1), (2, 8, 5, 5)),
    "both spread": ((2, 1, 5, 5), (1, 8, 1, 5)),
    "row": ((2, 8, 5, 5), (5,)),
    "empty": ((0, 8, 5, 5), (0, 8, 5, 5)),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("name", ["add", "mul", "add_relu"])
def test_arithmetic_is_within_one_quantum(name: str, shapes: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.quantized, "engine", engine)
    first, second = SHAPES[shapes]
    x, y = activation(*first), activation(*second, scale=0.011, zero_point=0, seed=1)
    assert distance(getattr(functional(), name)(x, y), BINARY[name](real(x), real(y))) <= 1


@pytest.mark.parametrize("engine", ENGINES)
def test_memory_formats_may_differ(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.quantized, "engine", engine)
    x, y = activation(2, 8, 5, 4), activation(2, 8, 5, 4, zero_point=7, seed=1).contiguous(memory_format=torch.channels_last)
    for name in ("add", "mul", "add_relu", "cat"):
        call = getattr(functional(), name)
        got = call([x, y], 1) if name == "cat" else call(x, y)
        assert distance(got, BINARY[name](real(x), real(y))) <= 1


def test_matmul_broadcasts_and_cat_requantizes() -> None:
    x, y = activation(2, 3, 4, 5), activation(5, 6, scale=0.01, zero_point=200)
    assert distance(functional(0.02, 128).matmul(x, y), real(x) @ real(y)) <= 1
    parts = [activation(2, 3), activation(2, 4, scale=0.01, zero_point=200), activation(2, 0)]
    assert distance(functional(0.03, 100).cat(parts, dim=-1), torch.cat([real(p) for p in parts], -1)) <= 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("number", [0.0, 0.5, -0.5, 3.7, -40.0, 1e-9])
def test_scalars(number: float, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.quantized, "engine", engine)
    for zero_point in (0, 100, 255):
        x = activation(3, 5, zero_point=zero_point)
        assert distance(functional().add_scalar(x, number), real(x) + number) <= 1
        assert distance(functional().mul_scalar(x, number), real(x) * number) == 0


def test_a_float_operand_is_refused_by_name() -> None:
    module = functional()
    module._qc_path = "block.skip"
    x = activation(2, 3)
    with pytest.raises(InputError, match=r"QFunctional\.add takes quint8 tensors, got a torch\.float32.*\n.*block\.skip") as caught:
        module.add(x, torch.zeros(2, 3))
    assert "QuantStub" in str(caught.value)
    for call in (lambda: module.mul_scalar(torch.zeros(2), 2.0), lambda: module.cat([x, torch.zeros(2, 3)])):
        with pytest.raises(InputError):
            call()
    with pytest.raises(ConfigError, match="not called itself: use one of its methods add"):
        module(x)


@pytest.mark.usefixtures("eight_bits")
def test_from_float_takes_what_was_observed() -> None:
    float_module = FloatFunctional()
    with pytest.raises(CalibrationError, match="nothing observed its result"):
        QFunctional.from_float(float_module)
    float_module.activation_post_process = MinMaxObserver()
    float_module.add(torch.tensor([-1.0]), torch.tensor([0.0]))
    float_module.mul(torch.tensor([2.0]), torch.tensor([2.0]))
    made = QFunctional.from_float(float_module)
    scale, zero_point = float_module.activation_post_process.calculate_qparams()
    assert (made.scale, made.zero_point) == (float(scale), int(zero_point))
    assert f"scale={float(scale)}, zero_point=51" in repr(made)
    with pytest.raises(ConfigError, match="made from a FloatFunctional, not from Linear"):
        QFunctional.from_float(nn.Linear(1, 1))  # type: ignore[arg-type]


def test_without_data_only_what_needs_no_qparams_runs() -> None:
    float_module = FloatFunctional()
    float_module.activation_post_process = MinMaxObserver()
    float_module.mul_scalar(torch.ones(1), 2.0)
    made = QFunctional.from_float(float_module)
    x = activation(2, 3)
    assert distance(made.mul_scalar(x, 2.0), real(x) * 2) == 0
    with pytest.raises(CalibrationError, match=r"QFunctional\.add has no qparams"):
        made.add(x, x)


@pytest.mark.usefixtures("eight_bits")
def test_signed_activations_have_unsigned_codes() -> None:
    float_module = FloatFunctional()
    float_module.activation_post_process = MinMaxObserver(dtype=torch.int8)
    float_module.add(torch.ones(1), torch.ones(1))
    made = QFunctional.from_float(float_module)
    assert (made.scale, made.zero_point) == (pytest.approx(2 / 255), 0)  # -128 of the range 0 to 2


class Block(nn.Module):
    """Every operation, through one functional each, as hand-prepared models have them."""

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__()
        self.sum, self.product, self.join, self.positive, self.mix, self.shift = (make() for _ in range(6))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        total = self.positive.add_relu(self.sum.add(x, y), self.product.mul(x, y))
        return self.mix.matmul(self.join.cat([total, self.shift.mul_scalar(self.shift.add_scalar(x, 0.5), 2.0)], dim=1), y)


@pytest.mark.parametrize("make", [FloatFunctional, FXFloatFunctional])
def test_float_forms_equal_plain_torch(make: Callable[[], Any]) -> None:
    x, y = torch.randn(2, 4, 4), torch.randn(2, 4, 4)
    expected = torch.cat([torch.relu(x + y + x * y), (x + 0.5) * 2], 1) @ y
    assert torch.allclose(Block(make)(x, y), expected, atol=1e-6)
    assert torch.allclose(torch.jit.script(Block(make))(x, y), expected, atol=1e-6)
    with pytest.raises(ConfigError, match="not called itself"):
        make()(x)


def test_scripted_saved_and_copied_blocks_agree_bit_for_bit() -> None:
    block = Block(lambda: functional(0.06, 90))
    x, y = activation(2, 4, 4), activation(2, 4, 4, seed=1)
    expected = block(x, y).int_repr()
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(block), stream)
    stream.seek(0)
    fresh = Block(QFunctional)
    fresh.load_state_dict(block.state_dict())
    for twin in (torch.jit.load(stream), copy.deepcopy(block), pickle.loads(pickle.dumps(block)), fresh, torch.jit.trace(block, (x, y))):
        assert torch.equal(twin(x, y).int_repr(), expected)
    with pytest.raises(Exception, match=r"QFunctional\.add takes quint8 tensors: quantize first"):
        torch.jit.script(block)(torch.zeros(2, 4, 4), torch.zeros(2, 4, 4))


def test_state_dict_keeps_the_scale_exactly_and_names_what_is_missing() -> None:
    block = Block(lambda: functional(0.1, 7))
    state = block.state_dict()
    assert state["sum.scale"].item() == 0.1
    del state["sum.scale"], state["join.zero_point"]
    with pytest.raises(RuntimeError, match=r"Missing key.*sum\.scale.*join\.zero_point"):
        Block(QFunctional).load_state_dict(state)
    loose = Block(QFunctional)
    assert set(loose.load_state_dict(state, strict=False).missing_keys) == {"sum.scale", "join.zero_point"}
    assert (loose.sum.scale, loose.sum.zero_point) == (1.0, 7)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.skip = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        return self.skip.add_relu(self.first(x), self.second(x))


def test_the_graph_flow_traces_through_float_functional() -> None:
    torch.manual_seed(0)
    model, data = Residual().eval(), torch.randn(4, 3, 8, 8)
    prepared = qcompiler.prepare_fx(model, qcompiler.get_default_qconfig_mapping("x86"), (data,), prepare_custom_config=QUANTIZED)
    qcompiler.calibrate(prepared, [data])
    converted = qcompiler.convert_fx(prepared)
    assert "quantized_add = quantized::add" in converted.code
    assert ".dequantize()" not in converted.code
    error = (converted(data).dequantize() - model(data)).norm() / model(data).norm()
    assert error < 0.05


@pytest.mark.parametrize("dtype", [torch.quint8, torch.qint8])
def test_quantize_and_dequantize(dtype: torch.dtype) -> None:
    module, x = Quantize(0.1, 3, dtype), torch.tensor([-100.0, -0.05, 0.0, 0.15, 0.25, 100.0])
    got = module(x)
    assert (got.q_scale(), got.q_zero_point(), got.dtype) == (0.1, 3, dtype)
    assert torch.equal(got.int_repr(), torch.quantize_per_tensor(x, 0.1, 3, dtype).int_repr())
    assert torch.equal(DeQuantize()(got), got.dequantize())
    assert torch.equal(DeQuantize()(x), x)  # from a part that stayed float
    assert f"scale=0.1, zero_point=3, dtype={dtype}" in repr(module)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.jit.script(module)):
        assert torch.equal(twin(x).int_repr(), got.int_repr())
    fresh = Quantize(1.0, 0, dtype)
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh(x).int_repr(), got.int_repr())
    with pytest.raises(InputError, match=r"takes a float tensor, got a torch\.q"):
        module(got)


@pytest.mark.usefixtures("eight_bits")
def test_quantize_from_an_observed_stub() -> None:
    stub = nn.Identity()
    stub.activation_post_process = MinMaxObserver()
    with pytest.raises(CalibrationError, match="saw no data"):
        Quantize.from_float(stub)
    stub.activation_post_process(torch.tensor([-1.0, 3.0]))
    made = Quantize.from_float(stub)
    assert (made.scale.item(), made.zero_point.item()) == (pytest.approx(4 / 255), 64)
    assert made.dtype is torch.quint8
    assert isinstance(DeQuantize.from_float(stub), DeQuantize)
