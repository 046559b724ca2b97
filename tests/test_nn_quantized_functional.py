"""nn.quantized.functional against dequantize - float64 op - quantize, on every engine; torch.ao's results where they are right."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.backends.torch.eager import run_op
from qcompiler.errors import ConfigError, InputError, UnsupportedOpError
from qcompiler.nn.quantized import functional as qF
from tests.cpu import SEVEN_BITS
from tests.int8_modules import ENGINES, activation, distance, real

OWN = {"scale": 0.013, "zero_point": 90}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(torch.backends.quantized, "engine", request.param)
    return str(request.param)


def weight(*shape: int, axis: int | None = 0, zero_point: int = 0) -> Tensor:
    values = torch.randint(-127, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(3))
    if axis is None:
        return torch._make_per_tensor_quantized_tensor(values, 0.004, zero_point)
    scales = torch.rand(shape[axis], dtype=torch.float64, generator=torch.Generator().manual_seed(4)) * 0.004 + 0.001
    return torch._make_per_channel_quantized_tensor(values, scales, torch.zeros(shape[axis], dtype=torch.int64), axis)


X4, X5 = (2, 6, 9, 7), (2, 6, 5, 6, 5)
Case = tuple[str, tuple[int, ...], dict[str, Any], Callable[[Tensor], Tensor], int]
KEEP: tuple[Case, ...] = (  # results on the input's scale: name, shape, arguments, float op, allowed quanta
    ("relu", X4, {}, F.relu, 0),
    ("max_pool1d", (2, 6, 11), {"kernel_size": 3, "stride": 2, "padding": 1}, lambda x: F.max_pool1d(x, 3, 2, 1), 0),
    ("max_pool1d", (2, 6, 11), {"kernel_size": 2}, lambda x: F.max_pool1d(x, 2), 0),
    ("max_pool2d", X4, {"kernel_size": (3, 2), "ceil_mode": True}, lambda x: F.max_pool2d(x, (3, 2), ceil_mode=True), 0),
    ("max_pool2d", X4, {"kernel_size": 3, "stride": 1, "dilation": 2}, lambda x: F.max_pool2d(x, 3, 1, 0, 2), 0),
    ("max_pool2d", (6, 9, 7), {"kernel_size": 2}, lambda x: F.max_pool2d(x, 2), 0),
    ("avg_pool2d", X4, {"kernel_size": 3, "padding": 1, "count_include_pad": False},
     lambda x: F.avg_pool2d(x, 3, None, 1, False, False), 1),
    ("avg_pool2d", X4, {"kernel_size": 2, "divisor_override": 3}, lambda x: F.avg_pool2d(x, 2, divisor_override=3), 1),
    ("avg_pool2d", (6, 9, 7), {"kernel_size": 2}, lambda x: F.avg_pool2d(x, 2), 1),
    ("avg_pool3d", X5, {"kernel_size": 2, "stride": (1, 2, 1)}, lambda x: F.avg_pool3d(x, 2, (1, 2, 1)), 1),
    ("adaptive_avg_pool2d", X4, {"output_size": 3}, lambda x: F.adaptive_avg_pool2d(x, 3), 1),
    ("adaptive_avg_pool2d", X4, {"output_size": (None, 2)}, lambda x: F.adaptive_avg_pool2d(x, (None, 2)), 1),
    ("adaptive_avg_pool3d", X5, {"output_size": (2, 1, 3)}, lambda x: F.adaptive_avg_pool3d(x, (2, 1, 3)), 1),
    ("interpolate", X4, {"scale_factor": 2}, lambda x: F.interpolate(x, scale_factor=2), 0),
    ("interpolate", X4, {"size": (5, 11), "mode": "bilinear", "align_corners": True},
     lambda x: F.interpolate(x, (5, 11), mode="bilinear", align_corners=True), 1),
    ("interpolate", (2, 6, 9), {"scale_factor": 1.5, "mode": "linear"}, lambda x: F.interpolate(x, scale_factor=1.5, mode="linear"), 1),
    ("clamp", X4, {"min_": -0.4, "max_": 0.9}, lambda x: x.clamp(-0.4, 0.9), 0),
    ("clamp", X4, {"min_": 0.2}, lambda x: x.clamp(min=0.2), 1),
    ("hardtanh", X4, {}, F.hardtanh, 1),
    ("threshold", X4, {"threshold": 0.1, "value": -0.6}, lambda x: F.threshold(x, 0.1, -0.6), 0),
    ("threshold", X4, {"threshold": 0.1, "value": 90.0}, lambda x: F.threshold(x, 0.1, 90.0), 0),
    ("leaky_relu", X4, {"negative_slope": 0.2}, lambda x: F.leaky_relu(x, 0.2), 1),
)  # fmt: skip
RESCALED: tuple[Case, ...] = (
    ("hardswish", X4, OWN, F.hardswish, 1),
    ("elu", X4, {**OWN, "alpha": 0.7}, lambda x: F.elu(x, 0.7), 1),
    ("celu", X4, {**OWN, "alpha": 0.7}, lambda x: F.celu(x, 0.7), 1),
    ("leaky_relu", X4, OWN, F.leaky_relu, 1),
    ("hardsigmoid", X4, {}, F.hardsigmoid, 1),
)


def _id(case: Case) -> str:
    return f"{case[0]}-{'x'.join(map(str, case[1]))}-{','.join(k for k in case[2] if k not in OWN)}"


@pytest.mark.parametrize("case", KEEP + RESCALED, ids=_id)
def test_within_one_quantum_of_float64(case: Case, engine: str) -> None:
    name, shape, arguments, op, allowed = case
    x = activation(*shape)
    inputs = [x, activation(*shape, zero_point=0)]
    inputs += [x.contiguous(memory_format=torch.channels_last), x[:, :, ::2]] if x.dim() == 4 else []
    for value in inputs:
        got = getattr(qF, name)(value, **arguments)
        assert distance(got, op(real(value))) <= allowed
        if case in KEEP:
            assert (got.q_scale(), got.q_zero_point()) == (value.q_scale(), value.q_zero_point())
        elif name != "hardsigmoid":
            assert (got.q_scale(), got.q_zero_point()) == (OWN["scale"], OWN["zero_point"])


@pytest.mark.parametrize("name", [*(c[0] for c in RESCALED), "relu", "clamp", "threshold"])
def test_empty_batch(name: str, engine: str) -> None:
    arguments = next(c[2] for c in KEEP + RESCALED if c[0] == name)
    assert getattr(qF, name)(activation(0, 6, 9, 7), **arguments).shape == (0, 6, 9, 7)


@pytest.mark.parametrize("case", [c for c in KEEP + RESCALED if c[1] == X4], ids=_id)
def test_signed_activations_are_computed_in_float(case: Case) -> None:
    name, shape, arguments, op, _ = case
    arguments = {**arguments, "zero_point": -20} if "zero_point" in arguments else arguments
    x = activation(*shape, dtype=torch.qint8)
    got = getattr(qF, name)(x, **arguments)
    assert got.dtype is torch.qint8
    assert distance(got, op(real(x))) <= 1


CONVS: tuple[tuple[int, dict[str, Any]], ...] = (
    (1, {"padding": 1}),
    (1, {"stride": (2,), "groups": 2}),
    (2, {"padding": (1, 0), "stride": 2}),
    (2, {"groups": 6, "padding": 1}),
    (2, {"padding": "same", "dilation": 2}),
    (2, {"padding": 1, "padding_mode": "reflect"}),
    (3, {"padding": 1, "dilation": (1, 2, 1)}),
)


@pytest.mark.parametrize(("dims", "settings"), CONVS, ids=str)
@pytest.mark.parametrize("axis", [None, 0])
def test_convolutions(dims: int, settings: dict[str, Any], axis: int | None, engine: str) -> None:
    x = activation(2, 6, *(9, 8, 7)[:dims])
    w = weight(12, 6 // settings.get("groups", 1), *[3] * dims, axis=axis)
    bias = torch.linspace(-1, 1, 12)
    got = getattr(qF, f"conv{dims}d")(x, w, bias, scale=0.05, zero_point=120, **settings)
    values, rest = real(x), {k: v for k, v in settings.items() if k != "padding_mode"}
    if "padding_mode" in settings:
        values, rest = F.pad(values, [1, 1, 1, 1], mode="reflect"), {**rest, "padding": 0}
    exact = getattr(F, f"conv{dims}d")(values, real(w), bias.double(), **rest)
    assert distance(got, exact) <= 1


def test_a_depthwise_convolution_does_not_overflow(engine: str) -> None:
    """Large weights and full 8-bit activations: fbgemm's own kernel is off by tens of quanta."""
    x = torch._make_per_tensor_quantized_tensor(torch.full((1, 16, 6, 6), 255, dtype=torch.uint8), 0.02, 0)
    w = torch._make_per_tensor_quantized_tensor(torch.full((16, 1, 3, 3), 127, dtype=torch.int8), 0.01, 0)
    got = qF.conv2d(x, w, None, padding=1, groups=16, scale=0.25, zero_point=0)
    assert distance(got, F.conv2d(real(x), real(w), None, 1, 1, 1, 16)) <= 1


@pytest.mark.parametrize("lead", [(5,), (2, 3), (0,), ()], ids=str)
@pytest.mark.parametrize("axis", [None, 0])
def test_linear(lead: tuple[int, ...], axis: int | None, engine: str) -> None:
    x, w, bias = activation(*lead, 13), weight(7, 13, axis=axis), torch.linspace(-1, 1, 7)
    for b in (bias, None):
        exact = F.linear(real(x), real(w), None if b is None else b.double())
        assert distance(qF.linear(x, w, b, 0.06, 110), exact) <= 1
        kept = qF.linear(x, w, b)
        assert (kept.q_scale(), kept.q_zero_point()) == (x.q_scale(), x.q_zero_point())
        assert distance(kept, exact) <= 1


@pytest.mark.parametrize("zero_point", [0, 5])
def test_asymmetric_weights(zero_point: int, engine: str) -> None:
    x, w = activation(3, 13), weight(7, 13, axis=None, zero_point=zero_point)
    assert distance(qF.linear(x, w, None, 0.06, 110), F.linear(real(x), real(w))) <= 1


def test_in_place_forms_change_their_input() -> None:
    for call, op in ((qF.relu, F.relu), (qF.hardtanh, F.hardtanh), (qF.leaky_relu, F.leaky_relu), (qF.hardsigmoid, F.hardsigmoid)):
        x = activation(3, 4)
        exact = op(real(x))
        assert call(x, inplace=True) is x
        assert distance(x, exact) <= 1
        assert x.q_zero_point() == 100


def test_traces_to_the_same_values() -> None:
    x, w = activation(1, 6, 8, 8), weight(4, 6, 3, 3)
    net = lambda a: qF.hardswish(qF.max_pool2d(qF.conv2d(a, w, None, scale=0.05, zero_point=100), 2), 0.03, 20)  # noqa: E731
    traced = torch.jit.trace(net, (x,))
    other = activation(1, 6, 8, 8, zero_point=100, high=200)
    assert torch.equal(traced(other).int_repr(), net(other).int_repr())


@pytest.mark.parametrize("op", ["max_pool1d", "avg_pool1d", "adaptive_avg_pool1d"])
def test_pools_of_one_image_flattened_after_a_convolution(op: str, engine: str) -> None:
    """(1, C, L) with the strides of channels_last: torch's own are off by hundreds of quanta."""
    x = activation(1, 6, 8, 8).contiguous(memory_format=torch.channels_last).flatten(2)
    name = "output_size" if op.startswith("adaptive") else "kernel_size"
    got = run_op(op, (x,), {name: 3}, x.q_scale(), x.q_zero_point())
    assert distance(got, getattr(F, op)(real(x), 3)) <= 1


class Net(nn.Module):
    """Functions as hand-written networks call them."""

    def forward(self, x: Tensor, w: Tensor, v: Tensor, bias: Tensor) -> list[Tensor]:
        x = qF.conv2d(x, w, bias, padding=1, scale=0.05, zero_point=120)
        y = qF.conv2d(x, w, None, 1, [1, 1], padding_mode="reflect", scale=0.3, zero_point=110)
        pools = [qF.max_pool2d(x, 2), qF.avg_pool2d(x, [2, 1], padding=0), qF.adaptive_avg_pool2d(x, [2, 3]), qF.max_pool2d(x, 3, 1, 1)]
        flat = x.flatten(2)
        rows = [qF.max_pool1d(flat, 3), qF.linear(flat, v), qF.linear(flat, v, None, 0.2, 128)]
        values = [qF.relu(y), qF.hardswish(y, 0.1, 10), qF.hardsigmoid(y), qF.leaky_relu(y, 0.2), qF.elu(y, 0.1, 10, 0.5)]
        values += [qF.celu(y, 0.1, 10), qF.clamp(y, -1.0, 2.0), qF.hardtanh(y), qF.threshold(y, 0.1, -0.5)]
        values += [qF.leaky_relu(y, scale=0.1, zero_point=9)]
        return pools + rows + values


def test_scripts_to_the_same_values() -> None:
    x, w, v, bias = activation(1, 6, 8, 8), weight(6, 6, 3, 3), weight(5, 64), torch.linspace(-1, 1, 6)
    net = Net()
    for got, expected in zip(torch.jit.script(net)(x, w, v, bias), net(x, w, v, bias), strict=True):
        assert (got.shape, got.q_scale(), got.q_zero_point()) == (expected.shape, expected.q_scale(), expected.q_zero_point())
        assert int((got.int_repr().int() - expected.int_repr().int()).abs().max()) <= 1


@pytest.mark.parametrize("case", KEEP + RESCALED, ids=_id)
def test_a_float_tensor_is_refused_by_name(case: Case) -> None:
    name, shape, arguments, _, _ = case
    with pytest.raises(InputError, match=rf"quantized\.functional\.{name} takes a quantized tensor, got a torch\.float32"):
        getattr(qF, name)(torch.zeros(shape), **arguments)


def test_what_is_refused_says_why() -> None:
    x, w = activation(1, 6, 8, 8), weight(4, 6, 3, 3)
    with pytest.raises(InputError, match=r"weight of quantized\.functional\.conv2d must be a qint8 tensor, got torch\.float32"):
        qF.conv2d(x, torch.zeros(4, 6, 3, 3), None)
    with pytest.raises(InputError, match=r"bias of quantized\.functional\.linear"):
        qF.linear(x, weight(4, 8), x)
    with pytest.raises(InputError, match=r"conv1d takes .*got input \(1, 6, 8, 8\)"):
        qF.conv1d(x, w, None)
    with pytest.raises(InputError, match="one scale, not one per channel"):
        qF.relu(w)
    with pytest.raises(UnsupportedOpError, match="no indices"):
        qF.max_pool2d(x, 2, return_indices=True)
    with pytest.raises(ConfigError, match="inplace=True keeps"):
        qF.leaky_relu(x, 0.1, True, 0.1, 0)
    with pytest.raises(ConfigError, match="together"):
        qF.leaky_relu(x, scale=0.1)


@pytest.mark.parametrize("name", ["upsample", "upsample_bilinear", "upsample_nearest"])
def test_old_names_warn_and_interpolate(name: str) -> None:
    x = activation(1, 2, 4, 4)
    with pytest.warns(UserWarning, match=f"{name} is deprecated. Use nn.quantized.functional.interpolate"):
        got = getattr(qF, name)(x, scale_factor=2)
    modes: dict[str, Any] = {"mode": "bilinear", "align_corners": True} if "bilinear" in name else {}
    assert torch.equal(got.int_repr(), qF.interpolate(x, scale_factor=2, **modes).int_repr())


def test_names_and_signatures_are_those_of_torch() -> None:
    import torch.ao.nn.quantized.functional as theirs

    for name in theirs.__all__:
        wanted, got = inspect.signature(getattr(theirs, name)), inspect.signature(getattr(qF, name))
        assert list(got.parameters) == list(wanted.parameters), name
        for key, parameter in wanted.parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                assert got.parameters[key].default == parameter.default, (name, key)


@pytest.mark.parametrize("name", ["hardswish", "elu", "celu", "clamp", "max_pool2d", "avg_pool2d", "linear"])
def test_agrees_with_torch_where_torch_is_right(name: str) -> None:
    import torch.ao.nn.quantized.functional as theirs

    x = activation(*X4)
    if name == "linear" and SEVEN_BITS:
        pytest.skip("without VNNI torch's linear overflows in 16 bits")
    arguments = {"weight": weight(5, 7, axis=None)} if name == "linear" else next(c[2] for c in KEEP + RESCALED if c[0] == name)
    got, wanted = getattr(qF, name)(x, **arguments), getattr(theirs, name)(x, **arguments)
    assert (got.q_scale(), got.q_zero_point()) == (wanted.q_scale(), wanted.q_zero_point())
    assert int((got.int_repr().int() - wanted.int_repr().int()).abs().max()) <= 1
