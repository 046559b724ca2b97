"""Native modules are as near to float as what x86 computes, in the mean over seeds: one seed is up to 2 dB off, either way."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.debug import compute_sqnr
from tests.flow import randn, randomized


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
