"""nn.quantized's convolutions against float64, on every engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import qcompiler.nn.intrinsic as nni
import qcompiler.nn.intrinsic.quantized as nniq
import qcompiler.nn.quantized as nnq
from qcompiler.backends.torch.program.once import quantized_engine
from qcompiler.config.qconfig import QConfig
from qcompiler.errors import ConfigError, InputError
from qcompiler.fake_quantize import default_fused_per_channel_wt_fake_quant, default_per_channel_weight_fake_quant
from qcompiler.observers import MinMaxObserver
from tests.int8_modules import ENGINES, PER_CHANNEL, PER_TENSOR, calibrated, codes, error, random_norm, same, truth

FLOAT = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
INT8 = {1: nnq.Conv1d, 2: nnq.Conv2d, 3: nnq.Conv3d}
TRANSPOSED = {1: (nn.ConvTranspose1d, nnq.ConvTranspose1d), 2: (nn.ConvTranspose2d, nnq.ConvTranspose2d),
              3: (nn.ConvTranspose3d, nnq.ConvTranspose3d)}  # fmt: skip
SIZE = {1: (11,), 2: (9, 7), 3: (5, 6, 5)}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

# (in, out, kernel, settings)
SETTINGS: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "plain": (3, 8, 3, {}),
    "no bias": (5, 7, 3, {"bias": False, "stride": 2}),
    "grouped": (8, 12, 3, {"groups": 4, "padding": 1}),
    "depthwise": (16, 16, 3, {"groups": 16, "padding": 1}),
    "dilated": (6, 5, 3, {"dilation": 2, "padding": 1}),
    "same": (6, 5, 3, {"padding": "same"}),
    "same, uneven": (6, 5, 4, {"padding": "same"}),
    "valid": (6, 5, 3, {"padding": "valid"}),
    "reflect": (6, 8, 3, {"padding": 1, "padding_mode": "reflect"}),
    "replicate": (6, 8, 3, {"padding": 2, "padding_mode": "replicate"}),
    "circular": (6, 8, 3, {"padding": 1, "padding_mode": "circular"}),
    "reflect, same, uneven": (6, 8, 4, {"padding": "same", "padding_mode": "reflect"}),
}
TRANSPOSES: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "equal channels": (8, 8, 3, {}),
    "more out": (8, 12, 3, {"stride": 2, "padding": 1, "output_padding": 1}),
    "more in": (12, 8, 2, {"stride": 2, "bias": False}),
    "grouped": (8, 16, 3, {"groups": 2, "dilation": 2}),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")  # the float module's
def test_convolution_is_within_one_quantum(case: str, dims: int, engine: str) -> None:
    channels, out, kernel, settings = SETTINGS[case]
    torch.manual_seed(0)
    x = codes(2, channels, *SIZE[dims])
    mod = calibrated(FLOAT[dims](channels, out, kernel, **settings), x, qconfig=PER_CHANNEL if dims != 1 else PER_TENSOR)
    with quantized_engine(engine):
        q = INT8[dims].from_float(mod)
        assert error(q, truth(mod, q, x), x) <= 1
        assert error(q, truth(mod, q, x[0]), x[0]) <= 1  # without a batch, as the float module takes it
        assert error(q, truth(mod, q, x), x) <= 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("case", TRANSPOSES)
def test_transposed_convolution_is_within_one_quantum(case: str, dims: int, engine: str) -> None:
    channels, out, kernel, settings = TRANSPOSES[case]
    torch.manual_seed(0)
    x = codes(2, channels, *SIZE[dims])
    kind, int8 = TRANSPOSED[dims]
    mod = calibrated(kind(channels, out, kernel, **settings), x, qconfig=PER_TENSOR)
    with quantized_engine(engine):
        q = int8.from_float(mod)
        for part in (x, x[0], x[:0]):
            assert error(q, truth(mod, q, part), part) <= 1


@pytest.mark.parametrize("engine", ENGINES)
def test_transposed_weights_have_one_scale_a_channel(engine: str) -> None:
    torch.manual_seed(0)
    x = codes(2, 8, 9, 7)
    mod = calibrated(nn.ConvTranspose2d(8, 6, 3, stride=2), x, qconfig=PER_CHANNEL)
    with quantized_engine(engine):
        q = nnq.ConvTranspose2d.from_float(mod)
        assert q.weight().q_per_channel_axis() == 1 and "per channel" in repr(q)
        assert error(q, truth(mod, q, x), x) <= 1


@pytest.mark.parametrize("maker", [default_per_channel_weight_fake_quant, default_fused_per_channel_wt_fake_quant])
def test_a_fake_quantize_of_the_qconfig_finds_the_channels(maker: Any) -> None:
    torch.manual_seed(0)
    x = codes(2, 8, 9, 7)
    conv = nn.ConvTranspose2d(8, 6, 3)
    mod = calibrated(conv, x, qconfig=QConfig(MinMaxObserver, maker))
    q = nnq.ConvTranspose2d.from_float(mod)
    largest = conv.weight.detach().abs().amax((0, 2, 3)).double()
    assert torch.allclose(q.weight().q_per_channel_scales() * 127.5, largest, rtol=1e-5)
    assert error(q, truth(mod, q, x), x) <= 1


@pytest.mark.parametrize("engine", ENGINES)
def test_given_per_channel_transposed_weights_run_anywhere(engine: str) -> None:
    """From a checkpoint or a QAT module they come as they are."""
    torch.manual_seed(0)
    x = codes(2, 8, 9, 7)
    mod = calibrated(nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2), x, qconfig=PER_TENSOR)
    with quantized_engine(engine):
        q = nnq.ConvTranspose2d(8, 6, 3, stride=2, groups=2)
        scales = torch.rand(3).double() * 0.01 + 0.002
        q.set_weight_bias(torch.quantize_per_channel(mod.weight.detach(), scales, torch.zeros(3).long(), 1, torch.qint8), mod.bias.detach())
        q.scale, q.zero_point = 0.05, 100
        assert error(q, truth(mod, q, x), x) <= 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("bounds", [0, 30])
def test_relu_is_in_the_kernel(dims: int, engine: str, bounds: int) -> None:
    """At any zero point: an observer of a ReLU gives 0, a hand-written module may have another."""
    torch.manual_seed(0)
    x = codes(2, 4, *SIZE[dims])
    fused = {1: nni.ConvReLU1d, 2: nni.ConvReLU2d, 3: nni.ConvReLU3d}[dims]
    mod = calibrated(fused(FLOAT[dims](4, 8, 3), nn.ReLU()), x)
    with quantized_engine(engine):
        q = {1: nniq.ConvReLU1d, 2: nniq.ConvReLU2d, 3: nniq.ConvReLU3d}[dims].from_float(mod)
        q.zero_point = bounds
        assert error(q, truth(mod, q, x), x) <= 1
        assert int(q(x).int_repr().min()) == bounds


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_batch_norm_is_folded(dims: int, transposed: bool, engine: str) -> None:
    torch.manual_seed(0)
    x = codes(2, 4, *SIZE[dims])
    kind, int8 = TRANSPOSED[dims] if transposed else (FLOAT[dims], INT8[dims])
    chain = nn.Sequential(kind(4, 6, 3, groups=2, bias=False), random_norm(NORM[dims](6)))
    mod = calibrated(chain, x, qconfig=PER_TENSOR)
    with quantized_engine(engine):
        q = int8.from_float(mod)
        plain = kind(4, 6, 3, groups=2)
        plain.bias.data = q.bias()
        plain.activation_post_process = nn.Identity()
        assert error(q, truth(plain, q, x), x) <= 1
    with torch.no_grad():
        difference = (q(x).dequantize() - chain[:2](x.dequantize())).abs().max()
    assert difference <= 4 * q.scale  # of the weight's rounding


@pytest.mark.parametrize("engine", ENGINES)
def test_eight_bit_activations_do_not_overflow_depthwise_kernels(engine: str) -> None:
    """fbgemm adds neighbouring taps in 16 bits: the scales are enlarged until that is safe."""
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, padding=1, groups=16)
    conv.weight.data = torch.rand_like(conv.weight) + 0.5
    x = codes(2, 16, 9, 9, high=255, zero_point=0)
    mod = calibrated(conv, x)
    with quantized_engine(engine):
        q = nnq.Conv2d.from_float(mod)
        if torch.cpu._is_vnni_supported() or engine == "qnnpack":  # elsewhere activations have 7 bits
            assert error(q, truth(mod, q, x), x) <= 1


def test_odd_batches_and_layouts() -> None:
    torch.manual_seed(0)
    x = codes(3, 5, 9, 7)
    mod = calibrated(nn.Conv2d(5, 4, 3), x)
    q = nnq.Conv2d.from_float(mod)
    for part in (x[:0], x[:1], x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        assert error(q, truth(mod, q, part), part) <= 1


def test_one_module_serves_inputs_of_any_scale() -> None:
    """Padding modes and packs depend on the input's qparams, which each call brings along."""
    torch.manual_seed(0)
    x = codes(2, 4, 9, 7)
    mod = calibrated(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), x)
    for engine in ENGINES:
        with quantized_engine(engine):
            q = nnq.Conv2d.from_float(mod)
            for scale, zero_point in ((0.02, 60), (0.005, 0), (0.04, 127)):
                part = codes(2, 4, 9, 7, scale=scale, zero_point=zero_point)
                assert error(q, truth(mod, q, part), part) <= 1


@pytest.mark.parametrize("kind", [nnq.Conv2d, nniq.ConvReLU2d])
def test_agrees_with_torch(kind: Any) -> None:
    theirs = {nnq.Conv2d: torch.ao.nn.quantized.Conv2d, nniq.ConvReLU2d: torch.ao.nn.intrinsic.quantized.ConvReLU2d}[kind]
    torch.manual_seed(0)
    weight = torch.quantize_per_channel(torch.randn(8, 3, 3, 3), torch.full((8,), 0.02), torch.zeros(8).long(), 0, torch.qint8)
    made = []
    for cls in (kind, theirs):
        m = cls(3, 8, 3, padding=1, padding_mode="reflect")
        m.set_weight_bias(weight, torch.randn(8, generator=torch.Generator().manual_seed(1)))
        m.scale, m.zero_point = 0.07, 30
        made.append(m)
    x = codes(2, 3, 9, 9)
    assert same(made[0](x), made[1](x))


@pytest.mark.parametrize("arguments", [
    {"padding_mode": "mirror"}, {"padding": "half"}, {"padding": "same", "stride": 2}, {"groups": 2}, {"out_channels": 0},
])  # fmt: skip
def test_settings_that_cannot_be(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        nnq.Conv2d(**{"in_channels": 3, "out_channels": 8, "kernel_size": 3, **arguments})


def test_wrong_rank_and_channels() -> None:
    q = nnq.Conv2d(3, 8, 3)
    with pytest.raises(InputError, match=r"takes an input of 3 or 4 dimensions, got shape \(2, 3\)"):
        q(codes(2, 3))
    for wrong in (codes(1, 4, 9, 9), codes(2, 9, 9)):
        with pytest.raises(InputError, match="takes 3 channels, got shape"):
            q(wrong)
