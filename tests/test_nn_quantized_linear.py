"""nn.quantized.Linear and its fused forms against float64, on every engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import qcompiler.nn.intrinsic as nni
import qcompiler.nn.intrinsic.quantized as nniq
import qcompiler.nn.quantized as nnq
from qcompiler.backends.torch.program.once import quantized_engine
from qcompiler.errors import ConfigError, InputError
from tests.int8_modules import ENGINES, PER_CHANNEL, PER_TENSOR, calibrated, codes, error, random_norm, same, truth

CHAINS: dict[str, tuple[Any, Any]] = {
    "Linear": (nnq.Linear, lambda linear: linear),
    "LinearReLU": (nniq.LinearReLU, lambda linear: nni.LinearReLU(linear, nn.ReLU())),
    "LinearLeakyReLU": (nniq.LinearLeakyReLU, lambda linear: nni.LinearLeakyReLU(linear, nn.LeakyReLU(0.2))),
    "LinearTanh": (nniq.LinearTanh, lambda linear: nni.LinearTanh(linear, nn.Tanh())),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("qconfig", [PER_TENSOR, PER_CHANNEL], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("chain", CHAINS)
def test_linear_is_within_one_quantum(chain: str, qconfig: Any, bias: bool, engine: str) -> None:
    kind, make = CHAINS[chain]
    torch.manual_seed(0)
    x = codes(2, 3, 17)
    mod = calibrated(make(nn.Linear(17, 9, bias=bias)), x, qconfig=qconfig)
    with quantized_engine(engine):
        q = kind.from_float(mod)
        for part in (x, x[0], x[0, 0], x[:0], x.transpose(0, 1)):  # any leading dimensions, none, an empty batch, a view
            assert error(q, truth(mod, q, part), part) <= 1


@pytest.mark.parametrize("engine", ENGINES)
def test_activations_are_not_rounded_before_tanh(engine: str) -> None:
    """Steep values: a linear rounded to 8 bits first would be several quanta off."""
    torch.manual_seed(0)
    x = codes(64, 8)
    linear = nn.Linear(8, 8)
    linear.weight.data *= 4
    mod = calibrated(nni.LinearTanh(linear, nn.Tanh()), x)
    with quantized_engine(engine):
        q = nniq.LinearTanh.from_float(mod)
        assert error(q, truth(mod, q, x), x) <= 1


def test_onednn_runs_the_fused_kernels() -> None:
    if "onednn" not in ENGINES:
        pytest.skip("no onednn")
    with quantized_engine("onednn"):
        fused = nniq.LinearTanh(4, 4), nniq.LinearLeakyReLU(4, 4, 0.1), nniq.ConvAdd2d(4, 4, 1)
    x = codes(2, 4)
    for q, name in zip(fused, ("linear_tanh_onednn", "linear_leaky_relu_onednn", "conv2d_add_onednn")):
        assert name in q.code and "dequantize" not in q.code
    with quantized_engine("fbgemm"), pytest.raises(RuntimeError, match=r"only where torch.backends.quantized.engine is onednn"):
        fused[0](x)


def test_batch_norm_is_folded() -> None:
    torch.manual_seed(0)
    x = codes(5, 8)
    mod = calibrated(nni.LinearBn1d(nn.Linear(8, 6), random_norm(nn.BatchNorm1d(6))), x)
    q = nnq.Linear.from_float(mod)
    with torch.no_grad():
        assert (q(x).dequantize() - nn.Sequential(mod[0], mod[1])(x.dequantize())).abs().max() <= 4 * q.scale


def test_agrees_with_torch() -> None:
    torch.manual_seed(0)
    weight = torch.quantize_per_tensor(torch.randn(9, 17), 0.02, 0, torch.qint8)
    made = []
    for cls in (nnq.Linear, torch.ao.nn.quantized.Linear):
        m = cls(17, 9)
        m.set_weight_bias(weight, torch.ones(9))
        m.scale, m.zero_point = 0.07, 30
        made.append(m)
    x = codes(2, 17)
    assert same(made[0](x), made[1](x))
    assert torch.equal(made[0].weight().int_repr(), made[1].weight().int_repr()) and torch.equal(made[0].bias(), made[1].bias())


def test_wrong_input_and_weights() -> None:
    q = nnq.Linear(17, 9)
    with pytest.raises(InputError, match=r"takes 17 channels, got shape \(2, 16\)"):
        q(codes(2, 16))
    with pytest.raises(InputError, match="1 or 2 or more dimensions"):
        q(codes(1)[0])
    with pytest.raises(ConfigError, match="qint8 tensor of shape"):
        q.set_weight_bias(torch.randn(9, 17), None)
    along = torch.quantize_per_channel(torch.randn(9, 17), torch.ones(17), torch.zeros(17).long(), 1, torch.qint8)
    with pytest.raises(ConfigError, match="along axis 1, not 0"):
        q.set_weight_bias(along, None)
    with pytest.raises(ConfigError, match=r"not torch.float16"):
        nnq.Linear(17, 9, dtype=torch.float16)
