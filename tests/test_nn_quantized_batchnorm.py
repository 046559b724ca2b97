"""nn.quantized's BatchNorms, alone and with a ReLU, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import qcompiler.nn.intrinsic as nni
import qcompiler.nn.intrinsic.quantized as nniq
import qcompiler.nn.quantized as nnq
from qcompiler.backends.torch.program.once import quantized_engine
from qcompiler.errors import ConfigError, InputError, NumericsError
from tests.int8_modules import ENGINES, calibrated, codes, error, random_norm, same, truth

SIZE = {2: (9, 7), 3: (5, 6, 5)}
KINDS: dict[tuple[int, bool], tuple[Any, Any]] = {
    (2, False): (nnq.BatchNorm2d, lambda bn: bn),
    (3, False): (nnq.BatchNorm3d, lambda bn: bn),
    (2, True): (nniq.BNReLU2d, lambda bn: nni.BNReLU2d(bn, nn.ReLU())),
    (3, True): (nniq.BNReLU3d, lambda bn: nni.BNReLU3d(bn, nn.ReLU())),
}
FLOAT = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("dims", "relu"), KINDS)
def test_batch_norm_is_within_one_quantum(dims: int, relu: bool, affine: bool, engine: str) -> None:
    kind, make = KINDS[dims, relu]
    torch.manual_seed(0)
    x = codes(2, 6, *SIZE[dims], high=255)
    mod = calibrated(make(random_norm(FLOAT[dims](6, eps=1e-3, affine=affine))), x)
    with quantized_engine(engine):
        q = kind.from_float(mod)
        for zero_point in (q.zero_point, 30):
            q.zero_point = zero_point
            for part in (x, x[:0], x[:1], x.transpose(2, 3).contiguous().transpose(2, 3)):
                assert error(q, truth(mod, q, part), part) <= 1


def test_a_hand_made_one_takes_a_float_state_dict() -> None:
    bn = random_norm(nn.BatchNorm2d(6))
    x = codes(2, 6, 4, 4, high=255)
    mod = calibrated(bn, x)
    q = nnq.BatchNorm2d(6)
    q.load_state_dict({**{k: v for k, v in bn.state_dict().items() if "." not in k and k not in ("min_val", "max_val")},
                       "scale": torch.tensor(0.05), "zero_point": torch.tensor(100)}, strict=False)  # fmt: skip
    assert error(q, truth(mod, q, x), x) <= 1
    assert "scale=0.05" in repr(q) and "zero_point=100" in repr(q) and repr(q).startswith("QuantizedBatchNorm2d(6, eps=1e-05")


@pytest.mark.parametrize("engine", ENGINES)
def test_agrees_with_torch(engine: str) -> None:
    bn = random_norm(nn.BatchNorm2d(6))
    x = codes(2, 6, 4, 4, high=255)
    with quantized_engine(engine):
        made = [cls(6) for cls in (nnq.BatchNorm2d, torch.ao.nn.quantized.BatchNorm2d)]
        state = {**bn.state_dict(), "scale": torch.tensor(0.0625), "zero_point": torch.tensor(100)}
        for m in made:
            m.load_state_dict(state)
        assert same(made[0](x), made[1](x))


def test_refusals() -> None:
    x = codes(2, 6, 4, 4)
    with pytest.raises(ConfigError, match="keeps no running statistics"):
        nnq.BatchNorm2d.from_float(calibrated(nn.BatchNorm2d(6, track_running_stats=False), x))
    broken = calibrated(random_norm(nn.BatchNorm2d(6)), x)
    broken.running_var[0] = -1.0
    with pytest.raises(NumericsError, match="negative"):
        nnq.BatchNorm2d.from_float(broken)
    with pytest.raises(ConfigError, match=r"BatchNorm2d stands for \[BatchNorm2d\], not for BNReLU2d \[BatchNorm2d, ReLU\]"):
        nnq.BatchNorm2d.from_float(calibrated(nni.BNReLU2d(nn.BatchNorm2d(6), nn.ReLU()), x))
    q = nnq.BatchNorm2d(6)
    with pytest.raises(InputError, match="an input of 4 dimensions"):
        q(codes(2, 6, 4))
    with pytest.raises(InputError, match="6 channels"):
        q(codes(2, 5, 4, 4))
