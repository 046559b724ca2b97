"""Native modules are as near to float as what x86 computes, in the mean over seeds: one seed is up to 2 dB off, either way."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.native.plan.codes import whole_factors
from qcompiler.debug import compute_sqnr
from tests.flow import randn, randomized
from tests.native_oracle import Ends, add


class Mixer(nn.Module):
    """A norm, a linear, GELU and a linear around a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24)) for _ in range(3))
        self.head = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)  # type: ignore[no-any-return]


def inverted() -> nn.Module:
    """Depthwise convolutions, whose scales x86 limits, SiLU and hardswish, which native kernels compute on sums."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.SiLU()]
    for act in (nn.SiLU, nn.Hardswish):
        layers += [nn.Conv2d(16, 16, 3, groups=16, padding=1, bias=False), nn.BatchNorm2d(16), act(), nn.Conv2d(16, 16, 1), act()]
    return nn.Sequential(*layers, nn.Flatten(2), nn.Conv1d(16, 4, 1))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {"mixer": (Mixer, (4, 9, 24)), "inverted": (inverted, (2, 3, 12, 12))}


@pytest.mark.parametrize("name", NETS)
def test_not_below_x86(name: str) -> None:
    make, shape = NETS[name]
    gains = []
    for seed in range(8):
        torch.manual_seed(seed)
        model, data = randomized(make(), seed), [(randn(*shape, seed=10 * seed + i),) for i in range(5)]
        prepared = [qcompiler.prepare_fx(model, None, data[0], **kind) for kind in ({"isa": "avx512_vnni"}, {"backend": "native"})]
        for one in prepared:
            qcompiler.calibrate(one, data[:4])
        with torch.no_grad():
            expected = model(*data[4])
            x86, native = qcompiler.convert_to_reference_fx(prepared[0]), qcompiler.convert_fx(prepared[1])
            gains.append(float(compute_sqnr(expected, native(*data[4])) - compute_sqnr(expected, x86(*data[4]))))
    assert statistics.mean(gains) > -0.1, gains


def test_sums_are_right_in_the_mean() -> None:
    """Of two codes, over many steps and zero points: what each sum is off by in the mean adds up along a stream of residuals."""
    codes, generator, off = torch.arange(256), torch.Generator().manual_seed(0), []
    a, b = codes[:, None].double(), codes[None].double()
    for _ in range(200):
        ka, kb, where = (float(x) for x in torch.rand(3, generator=generator))
        ka, kb = 0.2 + ka, 0.2 + kb
        factors = (ka, kb, 128 * (where - ka - kb))  # the middle lies among the codes of the result
        assert whole_factors(factors, 64) is not None
        exact = a * factors[0] + (b * factors[1] + factors[2]) + 64
        made = add(codes[:, None], codes[None], factors, Ends(64, 0, 255)).double()
        off.append(float((made - exact)[(exact > 1) & (exact < 254)].mean()))
    assert max(map(abs, off)) < 0.01 and abs(statistics.mean(off)) < 0.001, statistics.mean(off)
