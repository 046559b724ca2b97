"""Quantize and dequantize on plain tensors: the arithmetic of the QUANTIZED stage, and of every back end's contract.

q = clamp(round_half_even(x / scale) + zero_point, quant_min, quant_max);  x = (q - zero_point) * scale.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quantize(x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: torch.dtype) -> Tensor:
    """Float tensor of any shape to integers of `dtype`, per tensor."""
    # multiplies by the float32 inverse, as torch's kernels do: dividing rounds some ties to the other side
    inverse = torch.tensor(1.0 / scale, dtype=torch.float32, device=x.device)
    return torch.clamp(torch.round(x * inverse) + zero_point, quant_min, quant_max).to(dtype)


def dequantize(q: Tensor, scale: float, zero_point: int) -> Tensor:
    """Integers to float32, per tensor."""
    return (q.to(torch.float32) - zero_point) * scale


# The verifier checks such calls against the qparams that are noted in the graph.
quantize.converts = "quantize"  # type: ignore[attr-defined]
dequantize.converts = "dequantize"  # type: ignore[attr-defined]


def per_axis(values: Tensor, axis: int, dims: int) -> Tensor:
    """Views a vector so that it broadcasts along `axis` of a tensor with `dims` dimensions."""
    return values.reshape([-1 if i == axis else 1 for i in range(dims)])


def quantize_weight(w: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, quant_min: int, quant_max: int) -> Tensor:
    """Float weight to int8; `scale` and `zero_point` are vectors along `axis`, or one-element tensors where axis is None."""
    s, z = (scale, zero_point) if axis is None else (per_axis(scale, axis, w.dim()), per_axis(zero_point, axis, w.dim()))
    return torch.clamp(torch.round(w.double() / s.double()) + z, quant_min, quant_max).to(torch.int8)


def dequantize_weight(w: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    """int8 weight to float32; see quantize_weight."""
    s, z = (scale, zero_point) if axis is None else (per_axis(scale, axis, w.dim()), per_axis(zero_point, axis, w.dim()))
    return ((w.to(torch.float64) - z) * s).to(torch.float32)
