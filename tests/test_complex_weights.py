"""Models that compute with complex numbers between their convolutions: spectral layers, filters in the frequency domain, rotations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from qcompiler.files.safetensors import raw_of

BACKENDS = ("torch", "native")
BATCHES = [torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


class Spectral(nn.Module):
    """The lowest frequencies of each channel are mixed by complex weights, as in a Fourier neural operator."""

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        self.low = nn.Parameter(torch.randn(channels, channels, modes, modes, dtype=torch.complex64) * 0.2)
        self.high = nn.Parameter(torch.randn(channels, channels, modes, modes, dtype=torch.complex64) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        found, n = torch.fft.rfft2(x), self.modes
        made = torch.zeros(*x.shape[:2], x.shape[2], x.shape[3] // 2 + 1, dtype=torch.complex64)
        made[:, :, :n, :n] = torch.einsum("bixy,ioxy->boxy", found[:, :, :n, :n], self.low)
        made[:, :, -n:, :n] = torch.einsum("bixy,ioxy->boxy", found[:, :, -n:, :n], self.high)
        return torch.fft.irfft2(made, s=x.shape[-2:])


class Operator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift, self.spectral, self.beside, self.last = nn.Conv2d(3, 8, 1), Spectral(8, 4), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.lift(x)
        result: Tensor = self.last(F.gelu(self.spectral(y) + self.beside(y)))
        return result


class Between(nn.Module):
    """`made` between two convolutions."""

    def __init__(self, made: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.made = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3), made
        self.weight = nn.Parameter(torch.randn(9, dtype=torch.complex64))
        self.mixed = nn.Linear(9, 9, dtype=torch.complex64)
        self.register_buffer("phase", torch.polar(torch.ones(8), torch.arange(8) * 0.1))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.made(self, self.first(x)))
        return result


def pairs(y: Tensor) -> Tensor:
    return torch.view_as_complex(y.reshape(*y.shape[:-1], 8, 2))


CASES: dict[str, Callable[[], nn.Module]] = {
    "an operator": Operator,
    "a filter": lambda: Between(lambda m, y: torch.fft.irfft(torch.fft.rfft(y) * m.weight, n=16)),
    "a conjugate": lambda: Between(lambda m, y: torch.fft.irfft(torch.fft.rfft(y) * m.weight.conj(), n=16)),
    "a linear": lambda: Between(lambda m, y: torch.fft.irfft(m.mixed(torch.fft.rfft(y)), n=16)),
    "the size": lambda: Between(lambda m, y: (torch.fft.rfft(y) + m.weight).abs().relu()),
    "a rotation": lambda: Between(lambda m, y: torch.view_as_real(pairs(y) * m.phase).flatten(3)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_complex_numbers_between_convolutions(case: str, backend: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CASES[case]().eval()
    small = qcompiler.quantize(model, BATCHES, backend=backend, progress=False)
    ops = {row.op for row in qcompiler.explain(small).rows if row.int8}
    assert "conv2d" in ops and not any("fft" in op or "complex" in op for op in ops)
    with torch.no_grad():
        for x in (BATCHES[0], torch.cat(BATCHES[:3])[:5]):
            expected, found = model(x), small(x)
            assert float((found - expected).norm()) < 0.1 * float(expected.norm())  # 20 dB
    qcompiler.save(small, tmp_path / "net.qc")
    for other in (copy.deepcopy(small), qcompiler.load(tmp_path / "net.qc")):
        assert torch.equal(other(x), found)


@pytest.mark.parametrize("case", ["a filter", "a rotation"])
def test_complex_weights_are_trained(case: str) -> None:
    torch.manual_seed(0)
    prepared = qcompiler.prepare_qat_fx(CASES[case]().train(), None, (BATCHES[0],))
    prepared(BATCHES[0]).square().mean().backward()
    grown = {name for name, p in prepared.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    assert {"first.weight", "last.weight"} <= grown and ("weight" in grown) == (case == "a filter")
    assert qcompiler.convert_fx(prepared.eval())(BATCHES[1]).isfinite().all()


def test_files_hold_the_values_of_conjugates_and_negatives() -> None:
    """Both are marks on the memory of other values."""
    x = torch.tensor([1 + 2j, 3 - 4j])
    assert raw_of(x.conj()) == raw_of(torch.tensor([1 - 2j, 3 + 4j]))
    assert raw_of(x.conj().imag) == raw_of(torch.tensor([-2.0, 4.0]))
