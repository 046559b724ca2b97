"""Measures of how far two outputs are apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for key in value:
            yield from _tensors(value[key])
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def compute_sqnr(reference: Any, value: Any) -> float:
    """Signal to quantization noise ratio in dB, over all tensors: 10 log10(sum(reference^2) / sum((reference - value)^2))."""
    pairs = list(zip(_tensors(reference), _tensors(value), strict=True))
    signal = sum(a.double().pow(2).sum().item() for a, _ in pairs)
    noise = sum((a.double() - b.double()).pow(2).sum().item() for a, b in pairs)
    return math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal else -math.inf


def compute_cosine_similarity(reference: Any, value: Any) -> float:
    """Cosine of the angle between two outputs, all tensors flattened into one vector each."""
    a, b = (torch.cat([t.double().flatten() for t in _tensors(v)]) for v in (reference, value))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))
