"""nn.intrinsic.quantized.ConvAdd2d and ConvAddReLU2d; the other fused modules are tested beside what they fuse."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import nn

import qcompiler.nn.intrinsic as nni
import qcompiler.nn.intrinsic.quantized as nniq
from qcompiler.backends.torch.program.once import quantized_engine
from qcompiler.errors import ConfigError, InputError
from tests.int8_modules import ENGINES, calibrated, codes, error, same, truth

KINDS: dict[str, tuple[Any, Any]] = {
    "add": (nniq.ConvAdd2d, lambda conv: nni.ConvAdd2d(conv, torch.add)),
    "add, relu": (nniq.ConvAddReLU2d, lambda conv: nni.ConvAddReLU2d(conv, operator.add, nn.ReLU())),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1, "bias": False},
    "grouped": {"groups": 4},
    "same, uneven": {"kernel_size": 4, "padding": "same"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")  # the float module's
def test_residuals_are_within_one_quantum(kind: str, case: str, engine: str) -> None:
    int8, make = KINDS[kind]
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, **{"kernel_size": 3, **SETTINGS[case]})
    x = codes(2, 8, 9, 7)
    extra = codes(*conv(x.dequantize()).shape, seed=1, scale=0.05, zero_point=50)
    mod = calibrated(make(conv), x, extra)
    with quantized_engine(engine):
        q = int8.from_float(mod)
        for zero_point in (q.zero_point, 100):
            q.zero_point = zero_point
            last = extra.contiguous(memory_format=torch.channels_last)
            for pair in ((x, extra), (x, last), (x[0], extra[0]), (x[:0], extra[:0]), (x, extra[:, :, :1, :1])):
                held = pair[1].clone()
                assert error(q, truth(mod, q, *pair), *pair) <= 1
                assert same(pair[1], held), "the residual was written to"


def test_other_inputs_are_refused() -> None:
    q = nniq.ConvAdd2d(3, 4, 1)
    with pytest.raises(InputError, match=r"extra_input is a torch.float32 tensor, not a quantized one"):
        q(codes(1, 3, 5, 5), torch.randn(1, 4, 5, 5))
    with pytest.raises(RuntimeError, match=r"expand|match"):
        q(codes(1, 3, 5, 5), codes(1, 4, 5, 4))


def test_each_stands_for_its_own_float_module() -> None:
    x, extra = codes(1, 3, 5, 5), codes(1, 4, 5, 5)
    plain = calibrated(nni.ConvAdd2d(nn.Conv2d(3, 4, 1), torch.add), x, extra)
    with pytest.raises(ConfigError, match="not for ConvAdd2d"):
        nniq.ConvAddReLU2d.from_float(plain)
    clamped = calibrated(nni.ConvAddReLU2d(nn.Conv2d(3, 4, 1), torch.add, nn.ReLU()), x, extra)
    with pytest.raises(ConfigError, match="not for ConvAddReLU2d"):
        nniq.ConvAdd2d.from_float(clamped)
    with pytest.raises(ConfigError, match="not for Conv2d"):
        nniq.ConvAdd2d.from_float(calibrated(nn.Conv2d(3, 4, 1), x))
