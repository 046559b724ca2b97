"""Whole int8 ops computed in float, dequantize - f - quantize, each as one node.

They serve where torch has no correct quantized kernel, or a slower one. Like functions.py: self-contained, scriptable,
copied into exported files. Error: float32 rounding before the quantize, so at most one quantum from the exact result.
"""
# no `from __future__ import annotations`: torch.jit reads the annotations themselves

import torch


def sigmoid_float(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - sigmoid - quantize."""
    return torch.quantize_per_tensor(x.dequantize().sigmoid_(), scale, zero_point, torch.quint8)


def tanh_float(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - tanh - quantize."""
    return torch.quantize_per_tensor(x.dequantize().tanh_(), scale, zero_point, torch.quint8)


def silu_float(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - silu - quantize."""
    return torch.quantize_per_tensor(torch.nn.functional.silu(x.dequantize(), inplace=True), scale, zero_point, torch.quint8)


def gelu_float(x: torch.Tensor, approximate: str, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - gelu - quantize."""
    return torch.quantize_per_tensor(torch.nn.functional.gelu(x.dequantize(), approximate=approximate), scale, zero_point, torch.quint8)


def mish_float(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - mish - quantize."""
    return torch.quantize_per_tensor(torch.nn.functional.mish(x.dequantize(), inplace=True), scale, zero_point, torch.quint8)


def softplus_float(x: torch.Tensor, beta: float, threshold: float, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - softplus - quantize."""
    return torch.quantize_per_tensor(torch.nn.functional.softplus(x.dequantize(), beta, threshold), scale, zero_point, torch.quint8)


def elu_float(x: torch.Tensor, alpha: float, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - elu - quantize."""
    return torch.quantize_per_tensor(torch.nn.functional.elu(x.dequantize(), alpha, inplace=True), scale, zero_point, torch.quint8)


def celu_float(x: torch.Tensor, alpha: float, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - celu - quantize."""
    return torch.quantize_per_tensor(torch.nn.functional.celu(x.dequantize(), alpha, inplace=True), scale, zero_point, torch.quint8)


def hardswish_float(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - hardswish - quantize."""
    return torch.quantize_per_tensor(torch.nn.functional.hardswish(x.dequantize(), inplace=True), scale, zero_point, torch.quint8)


def hardsigmoid_float(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - hardsigmoid - quantize."""
    return torch.quantize_per_tensor(torch.nn.functional.hardsigmoid(x.dequantize(), inplace=True), scale, zero_point, torch.quint8)


def leaky_relu_float(x: torch.Tensor, negative_slope: float, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - leaky_relu - quantize."""
    y = torch.nn.functional.leaky_relu(x.dequantize(), negative_slope, inplace=True)
    return torch.quantize_per_tensor(y, scale, zero_point, torch.quint8)


def prelu_float(x: torch.Tensor, weight: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - prelu - quantize."""
    return torch.quantize_per_tensor(torch.nn.functional.prelu(x.dequantize(), weight), scale, zero_point, torch.quint8)


def softmax_float(x: torch.Tensor, dim: int, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - softmax - quantize."""
    return torch.quantize_per_tensor(torch.softmax(x.dequantize(), dim), scale, zero_point, torch.quint8)


def softmax_implicit(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """softmax_float along the dimension that torch takes where none is given: the first one of 0, 1 or 3 dimensions, else the second."""
    dim = 0 if x.dim() in (0, 1, 3) else 1
    return torch.quantize_per_tensor(torch.softmax(x.dequantize(), dim), scale, zero_point, torch.quint8)


def layer_norm_float(
    x: torch.Tensor,
    normalized_shape: list[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    scale: float,
    zero_point: int,
) -> torch.Tensor:
    """dequantize - layer_norm - quantize."""
    return torch.quantize_per_tensor(
        torch.nn.functional.layer_norm(x.dequantize(), normalized_shape, weight, bias, eps), scale, zero_point, torch.quint8
    )


def rms_norm_float(
    x: torch.Tensor, normalized_shape: list[int], weight: torch.Tensor | None, eps: float | None, scale: float, zero_point: int
) -> torch.Tensor:
    """dequantize - rms_norm - quantize."""
    return torch.quantize_per_tensor(torch.rms_norm(x.dequantize(), normalized_shape, weight, eps), scale, zero_point, torch.quint8)


def group_norm_float(
    x: torch.Tensor, num_groups: int, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, scale: float, zero_point: int
) -> torch.Tensor:
    """dequantize - group_norm - quantize."""
    return torch.quantize_per_tensor(torch.group_norm(x.dequantize(), num_groups, weight, bias, eps), scale, zero_point, torch.quint8)


def batch_norm_float(
    x: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    scale: float,
    zero_point: int,
) -> torch.Tensor:
    """dequantize - batch_norm - quantize."""
    return torch.quantize_per_tensor(
        torch.nn.functional.batch_norm(x.dequantize(), mean, var, weight, bias, False, 0.0, eps), scale, zero_point, torch.quint8
    )


def matmul_float(x: torch.Tensor, other: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - matmul - quantize."""
    return torch.quantize_per_tensor(torch.matmul(x.dequantize(), other.dequantize()), scale, zero_point, torch.quint8)


def add_float(x: torch.Tensor, other: torch.Tensor, alpha: float, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - add - quantize."""
    return torch.quantize_per_tensor(torch.add(x.dequantize(), other.dequantize(), alpha=alpha), scale, zero_point, torch.quint8)


def sub_float(x: torch.Tensor, other: torch.Tensor, alpha: float, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - sub - quantize."""
    return torch.quantize_per_tensor(torch.sub(x.dequantize(), other.dequantize(), alpha=alpha), scale, zero_point, torch.quint8)


def mul_float(x: torch.Tensor, other: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - mul - quantize; in place where `other` can be spread over x, since memory is what it waits for."""
    y, factor = x.dequantize(), other.dequantize()
    fits = factor.dim() <= y.dim()
    for i in range(1, min(factor.dim(), y.dim()) + 1):
        fits = fits and (factor.size(-i) == 1 or factor.size(-i) == y.size(-i))
    return torch.quantize_per_tensor(y.mul_(factor) if fits else y * factor, scale, zero_point, torch.quint8)


def div_float(x: torch.Tensor, other: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - div - quantize."""
    return torch.quantize_per_tensor(x.dequantize() / other.dequantize(), scale, zero_point, torch.quint8)


def maximum_float(x: torch.Tensor, other: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - maximum - quantize."""
    return torch.quantize_per_tensor(torch.maximum(x.dequantize(), other.dequantize()), scale, zero_point, torch.quint8)


def minimum_float(x: torch.Tensor, other: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - minimum - quantize."""
    return torch.quantize_per_tensor(torch.minimum(x.dequantize(), other.dequantize()), scale, zero_point, torch.quint8)


def affine_float(x: torch.Tensor, factor: float, offset: float, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - x * factor + offset - quantize."""
    return torch.quantize_per_tensor(x.dequantize().mul_(factor).add_(offset), scale, zero_point, torch.quint8)


def reciprocal_float(x: torch.Tensor, numerator: float, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - reciprocal - quantize."""
    return torch.quantize_per_tensor(numerator / x.dequantize(), scale, zero_point, torch.quint8)


def mean_float(x: torch.Tensor, dim: list[int] | None, keepdim: bool, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - mean - quantize."""
    return torch.quantize_per_tensor(torch.mean(x.dequantize(), dim, keepdim), scale, zero_point, torch.quint8)


def sum_float(x: torch.Tensor, dim: list[int] | None, keepdim: bool, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - sum - quantize."""
    return torch.quantize_per_tensor(torch.sum(x.dequantize(), dim, keepdim), scale, zero_point, torch.quint8)


def tril_float(x: torch.Tensor, diagonal: int, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - tril - quantize."""
    return torch.quantize_per_tensor(torch.tril(x.dequantize(), diagonal), scale, zero_point, torch.quint8)


def triu_float(x: torch.Tensor, diagonal: int, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - triu - quantize."""
    return torch.quantize_per_tensor(torch.triu(x.dequantize(), diagonal), scale, zero_point, torch.quint8)


def clamp_float(x: torch.Tensor, low: float, high: float, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - clamp - quantize."""
    return torch.quantize_per_tensor(x.dequantize().clamp_(low, high), scale, zero_point, torch.quint8)


def clamp_own(x: torch.Tensor, low: float | None, high: float | None) -> torch.Tensor:
    """dequantize - clamp - quantize, at the input's own scale."""
    return torch.quantize_per_tensor(x.dequantize().clamp_(low, high), x.q_scale(), x.q_zero_point(), torch.quint8)
