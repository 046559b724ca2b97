"""Complex numbers between real ones: spectra, weights of frequencies, turned pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.grammar.network import Draw, Made, rule


@rule(1)
def spectrum(draw: Draw, x: Tensor) -> Made | None:
    if x.shape[-1] < 4:
        return None

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(x.shape[-1] // 2 + 1, dtype=torch.cfloat))
            self.pairs = nn.Parameter(torch.randn(x.shape[-1] // 2 + 1, 2))

    def turned(part: Any, v: Tensor) -> Tensor:
        pairs = torch.view_as_complex(v.unflatten(-1, (-1, 2)).contiguous())
        angle = torch.arange(pairs.size(-1)) * 0.3
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)

    found: list[Any] = [
        lambda part, v: torch.fft.irfft(torch.fft.rfft(v) * part.weight, n=v.size(-1)),
        lambda part, v: (torch.fft.rfft(v).abs() + 0.1).log(),
        lambda part, v: torch.fft.irfft(torch.fft.rfft(v) * torch.view_as_complex(part.pairs), n=v.size(-1)) + v,
        lambda part, v: torch.fft.fft(v).real + v, lambda part, v: torch.fft.rfft(v, norm="ortho").real,
        lambda part, v: torch.fft.fft2(v).real * 0.1,
        lambda part, v: torch.fft.rfft(v)[..., :2].imag * 0.5,
    ]  # fmt: skip
    return Part(), draw.rng.choice([*found, turned] if x.shape[-1] % 2 == 0 else found)
