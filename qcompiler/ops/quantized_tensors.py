"""torch's quantized tensors, put together from plain ones and taken apart into them."""

from __future__ import annotations

import torch
from torch import Tensor

from qcompiler.ops.reference import dequantize_weight

PER_TENSOR = (torch.per_tensor_affine, torch.per_tensor_symmetric)


def channel_axis(tensor: Tensor) -> int | None:
    """The axis of a quantized tensor's scales, None per tensor."""
    return None if tensor.qscheme() in PER_TENSOR else tensor.q_per_channel_axis()


def qparams_of_tensor(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, zero_point) of a quantized tensor, float64 and int64: without dimension per tensor, vectors per channel."""
    if channel_axis(tensor) is None:
        return torch.tensor(tensor.q_scale(), dtype=torch.float64), torch.tensor(tensor.q_zero_point())
    return tensor.q_per_channel_scales().double(), tensor.q_per_channel_zero_points().long()


def quantized_tensor(values: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    """The quint8 or qint8 tensor of stored integers. `axis` None: per tensor, scale and zero point of one element."""
    if axis is None:
        return torch._make_per_tensor_quantized_tensor(values, float(scale), int(zero_point))
    return torch._make_per_channel_quantized_tensor(values, scale.double(), zero_point.long(), axis)


def quantized_table(codes: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """The quint8 (8 bits) or quint4x2 (4) tensor of an embedding's unpacked codes, with one scale and float zero point a row."""
    scale, zero_point = scale.float(), zero_point.float()
    if bits == 8:
        return torch._make_per_channel_quantized_tensor(codes, scale, zero_point, 0)
    return torch.quantize_per_channel(dequantize_weight(codes, scale, zero_point, 0), scale, zero_point, 0, torch.quint4x2)
