"""What torch.jit.script compiles in place of the functions of `functional`: the same values to a quantum, without the kernel table.

TorchScript cannot choose kernels from the tensors that it is given, so these compute in float, dequantize - op - quantize, where
a kernel of torch is not right on every engine. Each has the name and signature of its twin; they may name only `torch` and `floats`.
"""
# no `from __future__ import annotations`: torch.jit reads the annotations themselves
# ruff: noqa: UP045
# mypy: disable-error-code="valid-type, attr-defined, index"

from typing import Any, Optional

import torch
from torch import Tensor
from torch._jit_internal import BroadcastingList1, BroadcastingList2, BroadcastingList3

from qcompiler.backends.torch.runtime import floats


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    return torch.relu_(input) if inplace else torch.relu(input)


def linear(input: Tensor, weight: Tensor, bias: Optional[Tensor] = None, scale: Optional[float] = None,
           zero_point: Optional[int] = None) -> Tensor:  # fmt: skip
    own_scale = input.q_scale() if scale is None else scale
    own_zero_point = input.q_zero_point() if zero_point is None else zero_point
    y = torch.nn.functional.linear(input.dequantize(), weight.dequantize(), bias)
    return torch.quantize_per_tensor(y, own_scale, own_zero_point, input.dtype)


def conv1d(input: Tensor, weight: Tensor, bias: Optional[Tensor], stride: BroadcastingList1[int] = 1, padding: BroadcastingList1[int] = 0,
           dilation: BroadcastingList1[int] = 1, groups: int = 1, padding_mode: str = "zeros", scale: float = 1.0, zero_point: int = 0,
           dtype: torch.dtype = torch.quint8) -> Tensor:  # fmt: skip
    x, sides = input.dequantize(), padding
    if padding_mode != "zeros":
        x, sides = torch.nn.functional.pad(x, [padding[0], padding[0]], padding_mode), [0]
    y = torch.conv1d(x, weight.dequantize(), bias, stride, sides, dilation, groups)
    return torch.quantize_per_tensor(y, scale, zero_point, dtype)


def conv2d(input: Tensor, weight: Tensor, bias: Optional[Tensor], stride: BroadcastingList2[int] = 1, padding: BroadcastingList2[int] = 0,
           dilation: BroadcastingList2[int] = 1, groups: int = 1, padding_mode: str = "zeros", scale: float = 1.0, zero_point: int = 0,
           dtype: torch.dtype = torch.quint8) -> Tensor:  # fmt: skip
    x, sides = input.dequantize(), padding
    if padding_mode != "zeros":
        x = torch.nn.functional.pad(x, [padding[1], padding[1], padding[0], padding[0]], padding_mode)
        sides = [0, 0]
    y = torch.conv2d(x, weight.dequantize(), bias, stride, sides, dilation, groups)
    return torch.quantize_per_tensor(y, scale, zero_point, dtype)


def conv3d(input: Tensor, weight: Tensor, bias: Optional[Tensor], stride: BroadcastingList3[int] = 1, padding: BroadcastingList3[int] = 0,
           dilation: BroadcastingList3[int] = 1, groups: int = 1, padding_mode: str = "zeros", scale: float = 1.0, zero_point: int = 0,
           dtype: torch.dtype = torch.quint8) -> Tensor:  # fmt: skip
    x, sides = input.dequantize(), padding
    if padding_mode != "zeros":
        around = [padding[2], padding[2], padding[1], padding[1], padding[0], padding[0]]
        x, sides = torch.nn.functional.pad(x, around, padding_mode), [0, 0, 0]
    y = torch.conv3d(x, weight.dequantize(), bias, stride, sides, dilation, groups)
    return torch.quantize_per_tensor(y, scale, zero_point, dtype)


def max_pool1d(input: Tensor, kernel_size: BroadcastingList1[int], stride: Optional[BroadcastingList1[int]] = None,
               padding: BroadcastingList1[int] = 0, dilation: BroadcastingList1[int] = 1, ceil_mode: bool = False,
               return_indices: bool = False) -> Tensor:  # fmt: skip
    assert not return_indices, "quantized.functional.max_pool1d gives no indices"
    y = torch.max_pool1d(input.dequantize(), kernel_size, kernel_size if stride is None else stride, padding, dilation, ceil_mode)
    return torch.quantize_per_tensor(y, input.q_scale(), input.q_zero_point(), input.dtype)


def max_pool2d(input: Tensor, kernel_size: BroadcastingList2[int], stride: Optional[BroadcastingList2[int]] = None,
               padding: BroadcastingList2[int] = 0, dilation: BroadcastingList2[int] = 1, ceil_mode: bool = False,
               return_indices: bool = False) -> Tensor:  # fmt: skip
    assert not return_indices, "quantized.functional.max_pool2d gives no indices"
    y = torch.max_pool2d(input.dequantize(), kernel_size, kernel_size if stride is None else stride, padding, dilation, ceil_mode)
    return torch.quantize_per_tensor(y, input.q_scale(), input.q_zero_point(), input.dtype)


def avg_pool2d(input: Tensor, kernel_size: BroadcastingList2[int], stride: Optional[BroadcastingList2[int]] = None,
               padding: BroadcastingList2[int] = 0, ceil_mode: bool = False, count_include_pad: bool = True,
               divisor_override: Optional[int] = None) -> Tensor:  # fmt: skip
    steps = kernel_size if stride is None else stride
    y = torch.nn.functional.avg_pool2d(input.dequantize(), kernel_size, steps, padding, ceil_mode, count_include_pad, divisor_override)
    return torch.quantize_per_tensor(y, input.q_scale(), input.q_zero_point(), input.dtype)


def avg_pool3d(input: Tensor, kernel_size: BroadcastingList3[int], stride: Optional[BroadcastingList3[int]] = None,
               padding: BroadcastingList3[int] = 0, ceil_mode: bool = False, count_include_pad: bool = True,
               divisor_override: Optional[int] = None) -> Tensor:  # fmt: skip
    steps = kernel_size if stride is None else stride
    y = torch.nn.functional.avg_pool3d(input.dequantize(), kernel_size, steps, padding, ceil_mode, count_include_pad, divisor_override)
    return torch.quantize_per_tensor(y, input.q_scale(), input.q_zero_point(), input.dtype)


def adaptive_avg_pool2d(input: Tensor, output_size: BroadcastingList2[int]) -> Tensor:
    y = torch.nn.functional.adaptive_avg_pool2d(input.dequantize(), output_size)
    return torch.quantize_per_tensor(y, input.q_scale(), input.q_zero_point(), input.dtype)


def adaptive_avg_pool3d(input: Tensor, output_size: BroadcastingList3[int]) -> Tensor:
    y = torch.nn.functional.adaptive_avg_pool3d(input.dequantize(), output_size)
    return torch.quantize_per_tensor(y, input.q_scale(), input.q_zero_point(), input.dtype)


def hardswish(input: Tensor, scale: float, zero_point: int) -> Tensor:
    return floats.hardswish_float(input, scale, zero_point)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    if inplace:
        return input.copy_(floats.hardsigmoid_float(input, input.q_scale(), input.q_zero_point()))
    return floats.hardsigmoid_float(input, 1.0 / 256, 0)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False, scale: Optional[float] = None,
               zero_point: Optional[int] = None) -> Tensor:  # fmt: skip
    if scale is not None and zero_point is not None:
        assert not inplace, "leaky_relu with inplace=True keeps its input's qparams"
        return floats.leaky_relu_float(input, negative_slope, scale, zero_point)
    result = floats.leaky_relu_float(input, negative_slope, input.q_scale(), input.q_zero_point())
    return input.copy_(result) if inplace else result


def elu(input: Tensor, scale: float, zero_point: int, alpha: float = 1.0) -> Tensor:
    return floats.elu_float(input, alpha, scale, zero_point)


def celu(input: Tensor, scale: float, zero_point: int, alpha: float = 1.0) -> Tensor:
    return floats.celu_float(input, alpha, scale, zero_point)


def clamp(input: Tensor, min_: Optional[float] = None, max_: Optional[float] = None) -> Tensor:
    return floats.clamp_own(input, min_, max_)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    result = floats.clamp_own(input, min_val, max_val)
    return input.copy_(result) if inplace else result


def threshold(input: Tensor, threshold: float, value: float) -> Tensor:
    y = torch.threshold(input.dequantize(), threshold, value)
    return torch.quantize_per_tensor(y, input.q_scale(), input.q_zero_point(), input.dtype)


def attach(functions: dict[str, Any]) -> None:
    """Makes each function here the source that torch.jit.script reads for its twin (it unwraps functions first)."""
    for name in TWINS:
        functions[name].__wrapped__ = globals()[name]


TWINS = ("relu", "linear", "conv1d", "conv2d", "conv3d", "max_pool1d", "max_pool2d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool2d",
         "adaptive_avg_pool3d", "hardswish", "hardsigmoid", "leaky_relu", "elu", "celu", "clamp", "hardtanh", "threshold")  # fmt: skip
