"""Packs of weights, made once: each depends on constants alone and runs when a module is built or loaded.

Scriptable, as functions.py. There is one function a rank: programs, which are files too, name them, and TorchScript reads their types.
"""
# no `from __future__ import annotations`: torch.jit reads the annotations themselves

import torch


def float_weight(weight: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: int) -> torch.Tensor:
    """The float32 values of an int8 weight; `axis` -1 means per tensor."""
    if axis < 0:
        return (weight.float() - zero_point.float()) * scale.float()
    shape = [1] * weight.dim()
    shape[axis] = -1
    return (weight.float() - zero_point.float().view(shape)) * scale.float().view(shape)


float_weight.once = True  # type: ignore[attr-defined]


def widened(weight: torch.Tensor) -> torch.Tensor:
    """A float16 weight as float32."""
    return weight.float()


widened.once = True  # type: ignore[attr-defined]


def prepack_linear_half(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.classes.quantized.LinearPackedParamsBase:  # type: ignore[name-defined]
    """Packs a float16 weight of linear (fbgemm alone)."""
    return torch.ops.quantized.linear_prepack_fp16(weight.float(), bias)


prepack_linear_half.once = True  # type: ignore[attr-defined]


def _quantized(weight: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: int) -> torch.Tensor:
    """An int8 weight as torch's packs take it; `axis` -1 means per tensor."""
    if axis < 0:
        return torch._make_per_tensor_quantized_tensor(weight, float(scale.item()), int(zero_point.item()))
    return torch._make_per_channel_quantized_tensor(weight, scale.double(), zero_point.long(), axis)


def prepack_conv1d(
    weight: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    axis: int,
    tag: str,
) -> torch.classes.quantized.Conv2dPackedParamsBase:  # type: ignore[name-defined]
    """Packs the weight of conv1d for the current engine; `axis` -1 means per tensor. See prepack_linear for `tag`."""
    packed = _quantized(weight, scale, zero_point, axis)
    return torch.ops.quantized.conv1d_prepack(packed, bias, stride, padding, dilation, groups)


prepack_conv1d.once = True  # type: ignore[attr-defined]


prepack_conv1d.by_shape = ("x86", "onednn")  # type: ignore[attr-defined]  # engines whose packs are fast at one shape


def prepack_conv2d(
    weight: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    axis: int,
    tag: str,
) -> torch.classes.quantized.Conv2dPackedParamsBase:  # type: ignore[name-defined]
    """Packs the weight of conv2d for the current engine; `axis` -1 means per tensor. See prepack_linear for `tag`."""
    packed = _quantized(weight, scale, zero_point, axis)
    return torch.ops.quantized.conv2d_prepack(packed, bias, stride, padding, dilation, groups)


prepack_conv2d.once = True  # type: ignore[attr-defined]


prepack_conv2d.by_shape = ("x86", "onednn")  # type: ignore[attr-defined]  # engines whose packs are fast at one shape


def prepack_conv3d(
    weight: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    axis: int,
    tag: str,
) -> torch.classes.quantized.Conv3dPackedParamsBase:  # type: ignore[name-defined]
    """Packs the weight of conv3d for the current engine; `axis` -1 means per tensor. See prepack_linear for `tag`."""
    packed = _quantized(weight, scale, zero_point, axis)
    return torch.ops.quantized.conv3d_prepack(packed, bias, stride, padding, dilation, groups)


prepack_conv3d.once = True  # type: ignore[attr-defined]


prepack_conv3d.by_shape = ("x86", "onednn")  # type: ignore[attr-defined]  # engines whose packs are fast at one shape


def prepack_linear(
    weight: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bias: torch.Tensor | None,
    axis: int,
    tag: str,
) -> torch.classes.quantized.LinearPackedParamsBase:  # type: ignore[name-defined]
    """Packs the weight of linear for the current engine; `axis` -1 means per tensor.

    `tag` is not used: it keeps packs apart that must not be shared (qnnpack's remember the first scales they meet).
    """
    packed = _quantized(weight, scale, zero_point, axis)
    return torch.ops.quantized.linear_prepack(packed, bias)


prepack_linear.once = True  # type: ignore[attr-defined]


prepack_linear.by_shape = ("onednn",)  # type: ignore[attr-defined]


def prepack_linear_as_conv2d(
    weight: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bias: torch.Tensor | None,
    axis: int,
    tag: str,
) -> torch.classes.quantized.Conv2dPackedParamsBase:  # type: ignore[name-defined]
    """Packs the weight (O, I) of linear as a convolution with a window of one; see prepack_linear."""
    packed = _quantized(weight.unsqueeze(-1).unsqueeze(-1), scale, zero_point, axis)
    return torch.ops.quantized.conv2d_prepack(packed, bias, [1, 1], [0, 0], [1, 1], 1)


prepack_linear_as_conv2d.once = True  # type: ignore[attr-defined]


prepack_linear_as_conv2d.by_shape = ("onednn",)  # type: ignore[attr-defined]
