"""How far a value is from the one it should be, as one number. Floats and quantized tensors, tuples and dicts of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from qcompiler.errors import InputError


def tensors(value: object) -> Iterator[Tensor]:
    """Every tensor of a nested value, quantized ones dequantized."""
    if isinstance(value, Tensor):
        yield value.dequantize() if value.is_quantized else value
    elif isinstance(value, (Mapping, tuple, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(item)


def compute_sqnr(reference: object, value: object) -> float:
    """Signal to quantization noise ratio in dB, over all tensors: 10 log10(sum(reference^2) / sum((reference - value)^2)).

    inf without any noise, -inf for noise without signal. InputError where the two differ in structure or shape.
    """
    signal, noise = _powers(reference, value)
    return math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal else -math.inf


def compute_normalized_l2_error(reference: object, value: object) -> float:
    """sqrt(sum((reference - value)^2) / sum(reference^2)), over all tensors: 0 is equal. InputError as compute_sqnr."""
    signal, noise = _powers(reference, value)
    return math.sqrt(noise / signal) if signal else 0.0 if noise == 0 else math.inf


def compute_cosine_similarity(reference: object, value: object) -> float:
    """Cosine of the angle between two values, all tensors flattened into one vector each: 1 is the same direction.

    Shapes may differ where the number of elements is the same; InputError where it is not.
    """
    a, b = (torch.cat([t.double().flatten() for t in tensors(v)] or [torch.empty(0, dtype=torch.float64)]) for v in (reference, value))
    if a.shape != b.shape:
        raise InputError(f"values of {a.numel()} and {b.numel()} elements cannot be compared", code="different-shapes")
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def _powers(reference: object, value: object) -> tuple[float, float]:
    """Sums of squares, in float64: of the reference, and of the differences."""
    pairs = list(_pairs(list(tensors(reference)), list(tensors(value))))
    return sum(_power(a) for a, _ in pairs), sum(_power(a - b) for a, b in pairs)


def _pairs(references: list[Tensor], values: list[Tensor]) -> Iterable[tuple[Tensor, Tensor]]:
    shapes = [[tuple(t.shape) for t in side] for side in (references, values)]
    if shapes[0] != shapes[1]:
        raise InputError(f"values of the shapes {shapes[0]} and {shapes[1]} cannot be compared", code="different-shapes",
                         hint="the reference first, then the value; both for the same input")  # fmt: skip
    return ((a.double(), b.double()) for a, b in zip(references, values))


def _power(t: Tensor) -> float:
    return t.pow(2).sum().item()
