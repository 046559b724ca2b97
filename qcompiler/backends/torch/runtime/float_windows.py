"""Int8 ops over windows and positions computed in float, dequantize - f - quantize: convolutions, pools, resizes, pads; as floats.py."""
# no `from __future__ import annotations`: torch.jit reads the annotations themselves

import torch


def interpolate_float(
    x: torch.Tensor,
    size: list[int] | None,
    scale_factor: list[float] | None,
    mode: str,
    align_corners: bool | None,
    recompute_scale_factor: bool | None,
    antialias: bool,
    scale: float,
    zero_point: int,
) -> torch.Tensor:
    """dequantize - interpolate - quantize."""
    return torch.quantize_per_tensor(
        torch.nn.functional.interpolate(x.dequantize(), size, scale_factor, mode, align_corners, recompute_scale_factor, antialias),
        scale,
        zero_point,
        torch.quint8,
    )


def pad_float(x: torch.Tensor, pad: list[int], mode: str, value: float, scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - pad - quantize."""
    return torch.quantize_per_tensor(torch.nn.functional.pad(x.dequantize(), pad, mode, value), scale, zero_point, torch.quint8)


def pad_own(x: torch.Tensor, pad: list[int], mode: str) -> torch.Tensor:
    """dequantize - pad (with 0, where `mode` is constant) - quantize, at the input's own scale; exact."""
    y = torch.nn.functional.pad(x.dequantize(), pad, mode)
    return torch.quantize_per_tensor(y, x.q_scale(), x.q_zero_point(), torch.quint8)


def conv2d_add_float(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    other: torch.Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    scale: float,
    zero_point: int,
) -> torch.Tensor:
    """dequantize - conv2d with float weights and a sum - quantize. Contiguous: oneDNN's float kernel crashes where a window is padding."""
    y = torch.nn.functional.conv2d(
        x.dequantize().clone(memory_format=torch.contiguous_format), weight, bias, stride, padding, dilation, groups
    )
    return torch.quantize_per_tensor(y + other.dequantize(), scale, zero_point, torch.quint8)


def unfold_float(
    x: torch.Tensor, kernel_size: list[int], dilation: list[int], padding: list[int], stride: list[int], scale: float, zero_point: int
) -> torch.Tensor:
    """dequantize - unfold - quantize."""
    y = torch.nn.functional.unfold(x.dequantize(), kernel_size, dilation, padding, stride)  # type: ignore[arg-type]
    return torch.quantize_per_tensor(y, scale, zero_point, torch.quint8)


def conv_transpose1d_float(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    groups: int,
    dilation: list[int],
    scale: float,
    zero_point: int,
) -> torch.Tensor:
    """dequantize - conv_transpose1d with float weights - quantize."""
    y = torch.nn.functional.conv_transpose1d(x.dequantize(), weight, bias, stride, padding, output_padding, groups, dilation)
    return torch.quantize_per_tensor(y, scale, zero_point, torch.quint8)


def conv_transpose2d_float(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    groups: int,
    dilation: list[int],
    scale: float,
    zero_point: int,
) -> torch.Tensor:
    """dequantize - conv_transpose2d with float weights - quantize."""
    y = torch.nn.functional.conv_transpose2d(x.dequantize(), weight, bias, stride, padding, output_padding, groups, dilation)
    return torch.quantize_per_tensor(y, scale, zero_point, torch.quint8)


def conv_transpose3d_float(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    groups: int,
    dilation: list[int],
    scale: float,
    zero_point: int,
) -> torch.Tensor:
    """dequantize - conv_transpose3d with float weights - quantize."""
    y = torch.nn.functional.conv_transpose3d(x.dequantize(), weight, bias, stride, padding, output_padding, groups, dilation)
    return torch.quantize_per_tensor(y, scale, zero_point, torch.quint8)


def adaptive_max_pool1d_float(x: torch.Tensor, output_size: list[int], scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - adaptive_max_pool1d - quantize."""
    return torch.quantize_per_tensor(torch.nn.functional.adaptive_max_pool1d(x.dequantize(), output_size), scale, zero_point, torch.quint8)


def adaptive_max_pool2d_float(x: torch.Tensor, output_size: list[int], scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - adaptive_max_pool2d - quantize."""
    return torch.quantize_per_tensor(torch.nn.functional.adaptive_max_pool2d(x.dequantize(), output_size), scale, zero_point, torch.quint8)


def adaptive_max_pool3d_float(x: torch.Tensor, output_size: list[int], scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - adaptive_max_pool3d - quantize."""
    return torch.quantize_per_tensor(torch.nn.functional.adaptive_max_pool3d(x.dequantize(), output_size), scale, zero_point, torch.quint8)


def max_pool2d_float(
    x: torch.Tensor, kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> torch.Tensor:
    """dequantize - max_pool2d - quantize, at the qparams of x, which the compiler may not know (nn.quantized.MaxPool2d): exact."""
    y = torch.max_pool2d(x.dequantize(), kernel_size, stride, padding, dilation, ceil_mode)
    return torch.quantize_per_tensor(y, x.q_scale(), x.q_zero_point(), torch.quint8)


def max_pool3d_float(
    x: torch.Tensor, kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> torch.Tensor:
    """dequantize - max_pool3d - quantize, at the qparams of x, which the compiler may not know (nn.quantized.MaxPool2d): exact."""
    y = torch.max_pool3d(x.dequantize(), kernel_size, stride, padding, dilation, ceil_mode)
    return torch.quantize_per_tensor(y, x.q_scale(), x.q_zero_point(), torch.quint8)


def avg_pool2d_float(
    x: torch.Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    scale: float,
    zero_point: int,
) -> torch.Tensor:
    """dequantize - avg_pool2d - quantize."""
    y = torch.nn.functional.avg_pool2d(x.dequantize(), kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return torch.quantize_per_tensor(y, scale, zero_point, torch.quint8)


def roll_float(x: torch.Tensor, shifts: list[int], dims: list[int], scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - roll - quantize."""
    return torch.quantize_per_tensor(torch.roll(x.dequantize(), shifts, dims), scale, zero_point, torch.quint8)


def adaptive_avg_pool2d_float(x: torch.Tensor, output_size: list[int], scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - adaptive_avg_pool2d - quantize."""
    y = torch.nn.functional.adaptive_avg_pool2d(x.dequantize(), output_size)  # type: ignore[arg-type]
    return torch.quantize_per_tensor(y, scale, zero_point, torch.quint8)


def adaptive_avg_pool3d_float(x: torch.Tensor, output_size: list[int], scale: float, zero_point: int) -> torch.Tensor:
    """dequantize - adaptive_avg_pool3d - quantize."""
    y = torch.nn.functional.adaptive_avg_pool3d(x.dequantize(), output_size)  # type: ignore[arg-type]
    return torch.quantize_per_tensor(y, scale, zero_point, torch.quint8)
