"""Observers of qint8 activations and quint8 weights: kernels take the other kind, so codes and zero points are shifted, values are not.

Each signed variant equals its unsigned twin to the bit: over the ops of the table, the four engines and all flows.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler import (
    ConfigError,
    QCompilerError,
    QConfig,
    QConfigMapping,
    calibrate,
    convert_fx,
    convert_to_reference_fx,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare_fx,
    prepare_qat_fx,
)
from qcompiler.backends.torch.kernels.depthwise import safe_qparams, safe_weight
from qcompiler.config.qconfig import default_per_channel_symmetric_qnnpack_qconfig, default_symmetric_qnnpack_qconfig
from qcompiler.debug import compute_sqnr, parity
from qcompiler.fake_quantize import FakeQuantize, FusedMovingAvgObsFakeQuantize
from qcompiler.ir.types import QParams
from qcompiler.nn import quantizable
from qcompiler.nn import quantized as nnq
from qcompiler.observers import HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver, PerChannelMinMaxObserver
from qcompiler.ops.reference import dequantize, quantize, quantize_weight
from qcompiler.ops.spec import Spelling
from qcompiler.quantization import DeQuantStub, QuantStub, convert, prepare, prepare_qat
from tests.cpu import steps
from tests.flow import ENGINES, randn, randomized
from tests.test_ops import STATIC, Call, all_spellings, case_of, inputs_of, model_of, runs, spelled_call

SYMMETRIC = torch.per_tensor_symmetric
FAKE_QUANTS = (FakeQuantize, FusedMovingAvgObsFakeQuantize)
WEIGHT = get_default_qconfig("x86").weight
TWINS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # (unsigned, signed): the same real numbers
    "affine": ({}, {}),
    "symmetric": ({"qscheme": SYMMETRIC}, {"qscheme": SYMMETRIC}),
    "reduced": ({"reduce_range": True}, {"reduce_range": True}),
    "7 bits": ({"quant_min": 0, "quant_max": 127}, {"quant_min": -64, "quant_max": 63}),
    "narrow": ({"quant_min": 0, "quant_max": 254}, {"quant_min": -127, "quant_max": 127}),
    "narrow symmetric": ({"quant_min": 0, "quant_max": 254, "qscheme": SYMMETRIC},
                         {"quant_min": -127, "quant_max": 127, "qscheme": SYMMETRIC}),
    "4 bits": ({"quant_min": 0, "quant_max": 15}, {"quant_min": -8, "quant_max": 7}),
    "positive codes": ({"quant_min": 0, "quant_max": 127}, {"quant_min": 0, "quant_max": 127}),
}  # fmt: skip


def observers(kind: str) -> tuple[Any, Any]:
    unsigned, signed = TWINS[kind]
    return MinMaxObserver.with_args(dtype=torch.quint8, **unsigned), MinMaxObserver.with_args(dtype=torch.qint8, **signed)


def mapping(activation: Any, weight: Any = WEIGHT) -> QConfigMapping:
    return QConfigMapping().set_global(QConfig(activation, weight))


def calibrated(model: nn.Module, activation: Any, example: tuple[Any, ...], weight: Any = WEIGHT, **options: Any) -> Any:
    made = prepare_fx(model, mapping(activation, weight), example, **options)
    calibrate(made, [example])
    return made


def first_spellings() -> list[Any]:
    """One spelling of each row that a user writes, with an engine each in turn."""
    found: dict[str, Any] = {}
    for param in all_spellings():
        row, spelling = param.values  # type: ignore[misc]
        found.setdefault(row.name, (row, spelling))
    tables = [row.name for row, _ in found.values() if row.elementwise][1::6]  # one mechanism for all that are a table of 256
    kept = [(row, s) for row, s in found.values() if not row.elementwise or row.name in tables]
    return [pytest.param(row, s, ENGINES[i % 4], id=f"{row.name}-{ENGINES[i % 4]}") for i, (row, s) in enumerate(kept)]


@pytest.mark.parametrize(("row", "spelling", "engine"), first_spellings())
def test_each_op_equals_its_unsigned_twin(row: Any, spelling: Spelling, engine: str) -> None:
    case = case_of(row, spelling)
    example = inputs_of(case)
    model = next(m for by_name in (False, True) if runs(m := model_of(row, case, spelling.target,
                                                                    spelled_call(row, case, spelling, by_name)), example))  # fmt: skip
    kind = "symmetric" if len(row.name) % 2 else "affine"
    unsigned, signed = (convert_fx(calibrated(model, o, example, engine=engine)) for o in observers(kind))
    assert torch.equal(unsigned(*example), signed(*example))
    assert unsigned.code == signed.code


class Net(nn.Module):
    """Convolutions, one of them depthwise, a sum, a cat with a fixed range, a pool, a float part, a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.a(x)))
        x = F.max_pool2d(x + self.b(x), 2)
        x = F.hardswish(self.up(torch.cat([x, torch.sigmoid(x)], 1)))
        return self.head(F.layer_norm(x.mean((2, 3)), (8,)))


X = randn(8, 3, 8, 8)


def net() -> nn.Module:
    torch.manual_seed(0)
    return randomized(Net())


@pytest.mark.parametrize(("kind", "engine"), [(kind, ENGINES[(i + j) % 4]) for i, kind in enumerate(TWINS) for j in (0, 2)[: 1 + (i < 2)]])
def test_a_network_equals_its_unsigned_twin(kind: str, engine: str) -> None:
    if kind == "narrow symmetric" and steps(engine) < 255:
        pytest.skip("in 7 bits the middle of 0 to 254 is that of 0 to 126, of -127 to 127 that of 0 to 127")
    unsigned, signed = (calibrated(net(), o, (X,), engine=engine) for o in observers(kind))
    results = [convert_fx(made)(X) for made in (unsigned, signed)]
    assert torch.equal(*results)
    references = [convert_to_reference_fx(made)(X) for made in (unsigned, signed)]
    assert torch.equal(*references)
    bits = 4 if kind == "4 bits" else 7
    assert compute_sqnr(net()(X), results[0]) >= 6 * bits - 14  # 6 dB a bit; a dozen roundings, ranges that are not filled


@pytest.mark.parametrize("qconfig", [default_symmetric_qnnpack_qconfig, default_per_channel_symmetric_qnnpack_qconfig])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_ready_made_signed_qconfigs(qconfig: QConfig, engine: str) -> None:
    unsigned = HistogramObserver.with_args(eps=2.0**-12)
    signed, twin = (calibrated(net(), a, (X,), qconfig.weight, engine=engine) for a in (qconfig.activation, unsigned))
    assert torch.equal(convert_fx(signed)(X), convert_fx(twin)(X))


def test_without_vnni_codes_stay_below_128() -> None:
    """Kernels there add products in 16 bits: 7-bit codes from -64 on must become 0 to 127, not 64 to 191."""
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)).eval(), randn(6, 8)
    signed = convert_fx(calibrated(model, MinMaxObserver.with_args(dtype=torch.qint8), (x,), isa="avx2"))
    assert int(signed.activation_zero_points.max()) <= 127
    unsigned = convert_fx(calibrated(model, MinMaxObserver, (x,), isa="avx2"))
    assert torch.equal(signed(x), unsigned(x)) and signed.code == unsigned.code


@pytest.mark.parametrize(("kind", "engine", "fake_quant"), [(k, ENGINES[i % 4], FAKE_QUANTS[i % 3 == 1]) for i, k in enumerate(TWINS)])
def test_training(kind: str, engine: str, fake_quant: Any) -> None:
    """Parity of every value (convert_fx raises without it), and the values of the twin up to ties: x / s + z rounds in float32."""
    results = []
    for dtype, settings in zip((torch.quint8, torch.qint8), TWINS[kind], strict=True):
        made = fake_quant.with_args(observer=MovingAverageMinMaxObserver, dtype=dtype, **settings)
        prepared = prepare_qat_fx(net().train(), mapping(made, get_default_qat_qconfig("x86").weight), (X,), engine=engine)
        for _ in range(2):
            prepared(X).square().mean().backward()
        converted = convert_fx(prepared)
        assert parity(prepared, converted, [X]).holds
        results.append(converted(X))
    if "symmetric" not in kind or fake_quant is FakeQuantize:  # the fused kernel has other symmetric scales in uint8: its docstring
        assert compute_sqnr(*results) >= 20


class Stubs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Linear(16, 5)
        self.act, self.pool, self.hard = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Hardswish()
        self.sum, self.join = nnq.FloatFunctional(), nnq.FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.a(self.quant(x)))
        x = self.hard(self.sum.add(x, self.b(x)))
        return self.dequant(self.head(torch.flatten(self.pool(self.join.cat([x, torch.sigmoid(x)], 1)), 1)))


def stubs() -> nn.Module:
    torch.manual_seed(0)
    return Stubs().eval()


@pytest.fixture(params=ENGINES)
def engine(request: Any) -> Any:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = request.param
    yield request.param
    torch.backends.quantized.engine = before


@pytest.mark.parametrize("kind", ["affine", "symmetric", "7 bits", "4 bits"])
def test_eager(kind: str, engine: str) -> None:
    results = []
    for observer in observers(kind):
        model = stubs()
        model.qconfig = QConfig(observer, WEIGHT)
        prepared = prepare(model)
        prepared(X)
        converted = convert(prepared)
        results.append(converted(X))
        assert torch.equal(torch.jit.script(converted)(X), results[-1])
    assert torch.equal(*results)


@pytest.mark.parametrize("kind", ["affine", "symmetric"])
def test_eager_training(kind: str, engine: str) -> None:
    results = []
    for dtype, settings in zip((torch.quint8, torch.qint8), TWINS[kind], strict=True):
        model = stubs().train()
        made = FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, dtype=dtype, **settings)
        model.qconfig = QConfig(made, get_default_qat_qconfig("x86").weight)
        prepared = prepare_qat(model)
        prepared(X)
        results.append(convert(prepared.eval())(X))
    assert compute_sqnr(*results) >= 40  # ties, as in the graph flow


@pytest.mark.parametrize("layer", [nn.LSTM(6, 4), quantizable.LSTM(6, 4)])
def test_eager_layers_of_several_parts(layer: nn.Module) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.dequant, self.layer = QuantStub(), DeQuantStub(), copy.deepcopy(layer)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.dequant(self.layer(self.quant(x))[0])
            return result

    x, results = randn(5, 2, 6), []
    for observer in observers("affine"):
        model = Whole().eval()
        model.qconfig = QConfig(observer, WEIGHT)
        prepared = prepare(model)
        prepared(x)
        results.append(convert(prepared)(x))
    assert torch.equal(*results)


def signed_and_unsigned(*shape: int) -> tuple[Tensor, Tensor]:
    x = randn(*shape)
    return torch.quantize_per_tensor(x, 0.03, -5, torch.qint8), torch.quantize_per_tensor(x, 0.03, 123, torch.quint8)


BY_HAND: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nnq.Linear(8, 4), (2, 8)),
    "linear, other rank": (lambda: nnq.Linear(8, 4), (2, 3, 8)),
    "conv1d": (lambda: nnq.Conv1d(3, 4, 3), (2, 3, 8)),
    "conv2d": (lambda: nnq.Conv2d(3, 4, 3), (2, 3, 8, 8)),
    "conv2d, no batch": (lambda: nnq.Conv2d(3, 4, 3), (3, 8, 8)),
    "transposed": (lambda: nnq.ConvTranspose2d(3, 4, 3), (2, 3, 4, 4)),
    "batch norm": (lambda: nnq.BatchNorm2d(3), (2, 3, 4, 4)),
    "layer norm": (lambda: nnq.LayerNorm((4,), torch.ones(4), torch.zeros(4), 0.05, 100), (2, 3, 4, 4)),
    "hardswish": (lambda: nnq.Hardswish(0.02, 30), (2, 3)),
    "max pool": (lambda: nnq.MaxPool2d(2), (2, 3, 4, 4)),
    "relu6": (lambda: nnq.ReLU6(), (2, 3)),
}


@pytest.mark.filterwarnings("ignore:an input of .* has codes above 127:UserWarning")  # without VNNI; sums are alike on both sides
@pytest.mark.parametrize("case", BY_HAND)
def test_modules_by_hand_take_qint8_tensors(case: str, engine: str) -> None:
    make, shape = BY_HAND[case]
    module: Any = make()
    torch.manual_seed(1)
    state = {n: torch.randint(-90, 90, t.shape, dtype=t.dtype) if t.dtype is torch.int8 else t for n, t in module.state_dict().items()}
    module.load_state_dict(state)
    signed, unsigned = signed_and_unsigned(*shape)
    wanted = module(unsigned)
    scripted = torch.jit.script(module) if "rank" not in case and "no batch" not in case else module
    for found in (module(signed), scripted(signed)):
        assert found.dtype is torch.quint8 and torch.equal(found.int_repr(), wanted.int_repr())
        assert (found.q_scale(), found.q_zero_point()) == (wanted.q_scale(), wanted.q_zero_point())


@pytest.mark.parametrize("operation", ["add", "mul", "add_relu", "matmul", "cat", "add_scalar", "mul_scalar"])
def test_functional_modules_take_qint8_tensors(operation: str, engine: str) -> None:
    module: Any = nnq.QFunctional()
    module.scale, module.zero_point = 0.1, 30
    signed, unsigned = signed_and_unsigned(4, 4)

    def call(x: Tensor) -> Tensor:
        second: Any = -0.5 if "scalar" in operation else x
        result: Tensor = getattr(module, operation)([x, x]) if operation == "cat" else getattr(module, operation)(x, second)
        return result

    assert torch.equal(call(signed).dequantize(), call(unsigned).dequantize())


@pytest.mark.filterwarnings("ignore:an input of .* has codes above 127:UserWarning")  # without VNNI; sums are alike on both sides
def test_quantize_to_qint8_and_a_layer_behind_it(engine: str) -> None:
    layer = nnq.Linear(8, 4)
    layer.set_weight_bias(torch.quantize_per_tensor(randn(4, 8), 0.02, 0, torch.qint8), randn(4))
    signed = nn.Sequential(nnq.Quantize(0.03, -5, torch.qint8), layer, nnq.DeQuantize())
    unsigned = nn.Sequential(nnq.Quantize(0.03, 123), layer, nnq.DeQuantize())
    x = randn(5, 8)
    assert torch.equal(signed(x), unsigned(x)) and torch.equal(torch.jit.script(signed)(x), unsigned(x))


def test_channels_of_their_own_scale_are_no_activation() -> None:
    x = torch.quantize_per_channel(randn(2, 8), torch.full((8,), 0.1), torch.zeros(8).long(), 1, torch.qint8)
    with pytest.raises(QCompilerError, match="qint8"):
        nnq.Linear(8, 4)(x)
    with pytest.raises(QCompilerError, match="qint8"):
        nnq.QFunctional().add(x, x)


@pytest.mark.parametrize("engine", ENGINES)
def test_inputs_and_outputs_that_are_given_quantized(engine: str) -> None:
    """The caller may give either kind; what is handed out is quint8."""
    custom = {"input_quantized_idxs": [0], "output_quantized_idxs": [0]}
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    x = randn(6, 8)
    made = [convert_fx(calibrated(model, o, (x,), engine=engine, prepare_custom_config=custom)) for o in observers("symmetric")]
    scale, zero_point = float(made[1].activation_scales[0]), int(made[1].activation_zero_points[0])
    signed = torch.quantize_per_tensor(x, scale, zero_point - 128, torch.qint8)
    unsigned = torch.quantize_per_tensor(x, scale, zero_point, torch.quint8)
    found = [module(given) for module in made for given in (signed, unsigned)]
    codes = [f.int_repr().int() for f in found]
    assert all(f.dtype is torch.quint8 for f in found) and torch.equal(codes[0], codes[2]) and torch.equal(codes[1], codes[3])
    assert int((codes[0] - codes[1]).abs().max()) <= 1  # torch may round a value at half a step of the input to either side


WEIGHTS = {
    "per channel": (PerChannelMinMaxObserver.with_args(dtype=torch.quint8, qscheme=torch.per_channel_affine),
                    PerChannelMinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_channel_affine)),
    "per tensor": (MinMaxObserver.with_args(dtype=torch.quint8), MinMaxObserver.with_args(dtype=torch.qint8)),
    "symmetric": (MinMaxObserver.with_args(dtype=torch.quint8, qscheme=SYMMETRIC),
                  MinMaxObserver.with_args(dtype=torch.qint8, qscheme=SYMMETRIC)),
    "4 bits": (MinMaxObserver.with_args(dtype=torch.quint8, quant_min=0, quant_max=15),
               MinMaxObserver.with_args(dtype=torch.qint8, quant_min=-8, quant_max=7)),
}  # fmt: skip


@pytest.mark.parametrize("kind", WEIGHTS)
def test_unsigned_weights_are_the_signed_ones(kind: str, engine: str) -> None:
    graphs = [convert_fx(calibrated(net(), MinMaxObserver, (X,), weight, engine=engine)) for weight in WEIGHTS[kind]]
    assert all(torch.equal(a, b) for a, b in zip(graphs[0].state_dict().values(), graphs[1].state_dict().values(), strict=True))
    assert torch.equal(graphs[0](X), graphs[1](X))
    if kind != "4 bits":
        assert compute_sqnr(net()(X), graphs[0](X)) >= 28
    results = []
    for weight in WEIGHTS[kind] if engine != "onednn" or kind == "symmetric" else ():  # a module there takes no other, qint8 or quint8
        model = stubs()
        model.qconfig = QConfig(MinMaxObserver, weight)
        prepared = prepare(model)
        prepared(X)
        results.append(convert(prepared)(X))
    assert not results or torch.equal(*results)


def test_a_depthwise_weight_with_zero_points_cannot_overflow() -> None:
    """A weight of -1 to 0 has code 127 for 0: two such codes times 255 are more than 16 bits hold."""
    weight = -torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(0)).pow(8)
    observer = PerChannelMinMaxObserver(dtype=torch.qint8, qscheme=torch.per_channel_affine)
    observer(weight)
    scale, zero_point = (t.reshape(-1) for t in observer.calculate_qparams())
    assert not safe_weight(quantize_weight(weight, scale, zero_point, 0, -128, 127))
    scale, zero_point = safe_qparams(weight, scale, zero_point, 127)
    codes = quantize_weight(weight, scale, zero_point, 0, -128, 127)
    assert safe_weight(codes) and compute_sqnr(weight, (codes.float() - zero_point.reshape(-1, 1, 1, 1)) * scale.reshape(-1, 1, 1, 1)) > 25


@pytest.mark.parametrize("kind", TWINS)
def test_qparams_of_the_other_kind_are_the_same_numbers(kind: str) -> None:
    x = torch.linspace(-3, 2, 999)
    observer = observers(kind)[1]()
    observer(x)
    signed = observer.qparams()
    unsigned = signed.unsigned()
    assert unsigned.dtype is torch.uint8 and unsigned.quant_min == 0 and unsigned.range == signed.range
    both = [dequantize(quantize(x, p.scale, p.zero_point, p.quant_min, p.quant_max, p.dtype), p.scale, p.zero_point)
            for p in (signed, unsigned)]  # fmt: skip
    assert torch.equal(*both) and unsigned.unsigned() is unsigned and signed.signed() is signed
    back = unsigned.signed()
    assert back.dtype is torch.int8 and back.range == signed.range and -128 <= back.quant_min < back.quant_max <= 127


def test_what_is_no_integer_of_8_bits() -> None:
    with pytest.raises(ConfigError, match="int32"):
        QConfig(MinMaxObserver.with_args(dtype=torch.qint32), WEIGHT)
    with pytest.raises(ConfigError):
        MinMaxObserver(dtype=torch.float16)
    channels = QParams((0.1, 0.2), (3, 200), 0, 255, torch.uint8, 0)
    assert channels.signed().zero_point == (-125, 72)


assert STATIC and Call  # the ops that are tried are those of test_ops
