"""Functions on quantized tensors, by the names and signatures of torch.nn.quantized.functional.

Each takes a quantized tensor (quint8 by int8 kernels, other types in float) and returns one, the kernel chosen from the kernel
table for the current engine. Functions without `scale` and `zero_point` keep their input's. A float tensor raises InputError.

`nn.functional.quantize_relu`, which some texts name, does not exist in torch: `relu` here is what they mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.torch.eager import run_op
from qcompiler.backends.torch.runtime import floats  # noqa: F401  (the twins' source is compiled with the names of this file)
from qcompiler.errors import ConfigError, InputError, UnsupportedOpError
from qcompiler.nn.quantized import functional_script

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "avg_pool2d",
    "avg_pool3d",
    "celu",
    "clamp",
    "conv1d",
    "conv2d",
    "conv3d",
    "elu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "interpolate",
    "leaky_relu",
    "linear",
    "max_pool1d",
    "max_pool2d",
    "relu",
    "threshold",
    "upsample",
    "upsample_bilinear",
    "upsample_nearest",
]

Size = int | Sequence[int]


def _check(function: str, value: Any) -> None:
    if not isinstance(value, Tensor) or not value.is_quantized:
        kind = f"a {value.dtype} tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        hint = "quantize it first: a QuantStub in the model, or torch.quantize_per_tensor(x, scale, zero_point, torch.quint8)"
        raise InputError(f"quantized.functional.{function} takes a quantized tensor, got {kind}", code="not-quantized", hint=hint)
    if value.qscheme() not in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        raise InputError(f"quantized.functional.{function} takes activations with one scale, not one per channel", code="per-channel-input")


SETTINGS = ("stride", "padding", "dilation", "groups", "padding_mode")  # of a convolution


def _check_weight(function: str, weight: object, bias: object) -> None:
    if not isinstance(weight, Tensor) or weight.dtype is not torch.qint8:
        kind = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise InputError(
            f"the weight of quantized.functional.{function} must be a qint8 tensor, got {kind}", code="weight-not-quantized",
            hint="torch.quantize_per_tensor(weight, scale, 0, torch.qint8), or quantize_per_channel along axis 0",
        )  # fmt: skip
    if bias is not None and (not isinstance(bias, Tensor) or bias.is_quantized):
        raise InputError(f"the bias of quantized.functional.{function} must be a float tensor or None", code="bias-quantized")


def _same(name: str, input: Tensor, **attributes: object) -> Tensor:
    """An op whose result keeps its input's qparams and type."""
    return run_op(name, (input,), attributes, input.q_scale(), input.q_zero_point(), input.dtype)


def _own(name: str, input: Tensor, scale: float, zero_point: int, **attributes: object) -> Tensor:
    """An op whose result has qparams of its own."""
    return run_op(name, (input,), attributes, float(scale), int(zero_point), input.dtype)


def _no_indices(function: str, wanted: bool) -> None:
    if wanted:
        raise UnsupportedOpError(f"quantized.functional.{function} gives no indices", code="pool-indices",
                                 hint="take them from the dequantized tensor: torch.nn.functional's, with return_indices=True")  # fmt: skip


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(input, 0), exact; `inplace` writes it into `input`. (`nn.functional.quantize_relu` of some texts: torch has none.)"""
    _check("relu", input)
    result = _same("relu", input)
    return input.copy_(result) if inplace else result


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, scale: float | None = None, zero_point: int | None = None) -> Tensor:
    """input (*, in) times weight (out, in) transposed plus float bias; qint8 weight per tensor or per channel.

    `scale`, `zero_point` of the result default to the input's. Packs the weight at each call: nn.quantized.Linear keeps its pack.
    """
    _check("linear", input)
    _check_weight("linear", weight, bias)
    scale = input.q_scale() if scale is None else float(scale)
    zero_point = input.q_zero_point() if zero_point is None else int(zero_point)
    return run_op("linear", (input, weight, bias), {}, scale, zero_point, input.dtype)


def _conv(
    dims: int,
    operands: tuple[Tensor, Tensor, Tensor | None],
    values: tuple[object, ...],
    scale: float,
    zero_point: int,
    dtype: torch.dtype,
) -> Tensor:
    """`values`: of SETTINGS."""
    (input, weight, bias), settings = operands, dict(zip(SETTINGS, values, strict=True))
    name = f"conv{dims}d"
    _check(name, input)
    _check_weight(name, weight, bias)
    if weight.dim() != dims + 2 or input.dim() not in (dims + 1, dims + 2):
        shapes = f"input {tuple(input.shape)}, weight {tuple(weight.shape)}"
        raise InputError(f"quantized.functional.{name} takes (N, C, ...) and (O, C/groups, ...) with {dims} sizes; got {shapes}",
                         code="input-shape")  # fmt: skip
    if settings["padding_mode"] == "zeros":
        del settings["padding_mode"]
    elif isinstance(settings["padding"], int):  # the float form wants a tuple here, as modules have it
        settings["padding"] = (settings["padding"],) * dims
    return run_op(name, (input, weight, bias), settings, float(scale), int(zero_point), dtype)


def conv1d(input: Tensor, weight: Tensor, bias: Tensor | None, stride: Size = 1, padding: Size | str = 0, dilation: Size = 1,
           groups: int = 1, padding_mode: str = "zeros", scale: float = 1.0, zero_point: int = 0,
           dtype: torch.dtype = torch.quint8) -> Tensor:  # fmt: skip
    """Convolution of (N, C, L) with a qint8 weight (O, C/groups, k) and a float bias. Packs the weight at each call."""
    return _conv(1, (input, weight, bias), (stride, padding, dilation, groups, padding_mode), scale, zero_point, dtype)


def conv2d(input: Tensor, weight: Tensor, bias: Tensor | None, stride: Size = 1, padding: Size | str = 0, dilation: Size = 1,
           groups: int = 1, padding_mode: str = "zeros", scale: float = 1.0, zero_point: int = 0,
           dtype: torch.dtype = torch.quint8) -> Tensor:  # fmt: skip
    """Convolution of (N, C, H, W) with a qint8 weight (O, C/groups, kH, kW) and a float bias. Packs the weight at each call."""
    return _conv(2, (input, weight, bias), (stride, padding, dilation, groups, padding_mode), scale, zero_point, dtype)


def conv3d(input: Tensor, weight: Tensor, bias: Tensor | None, stride: Size = 1, padding: Size | str = 0, dilation: Size = 1,
           groups: int = 1, padding_mode: str = "zeros", scale: float = 1.0, zero_point: int = 0,
           dtype: torch.dtype = torch.quint8) -> Tensor:  # fmt: skip
    """Convolution of (N, C, D, H, W) with a qint8 weight (O, C/groups, kD, kH, kW), float bias. Packs the weight at each call."""
    return _conv(3, (input, weight, bias), (stride, padding, dilation, groups, padding_mode), scale, zero_point, dtype)


def max_pool1d(input: Tensor, kernel_size: Size, stride: Size | None = None, padding: Size = 0, dilation: Size = 1,
               ceil_mode: bool = False, return_indices: bool = False) -> Tensor:  # fmt: skip
    """Largest values of windows of (N, C, L), exact. UnsupportedOpError for `return_indices`."""
    _check("max_pool1d", input)
    _no_indices("max_pool1d", return_indices)
    stride = kernel_size if stride is None else stride
    return _same("max_pool1d", input, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode)


def max_pool2d(input: Tensor, kernel_size: Size, stride: Size | None = None, padding: Size = 0, dilation: Size = 1,
               ceil_mode: bool = False, return_indices: bool = False) -> Tensor:  # fmt: skip
    """Largest values of windows of (N, C, H, W), exact. UnsupportedOpError for `return_indices`."""
    _check("max_pool2d", input)
    _no_indices("max_pool2d", return_indices)
    stride = kernel_size if stride is None else stride
    return _same("max_pool2d", input, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode)


def avg_pool2d(input: Tensor, kernel_size: Size, stride: Size | None = None, padding: Size = 0, ceil_mode: bool = False,
               count_include_pad: bool = True, divisor_override: int | None = None) -> Tensor:  # fmt: skip
    """Means of windows of (N, C, H, W), on the input's scale."""
    _check("avg_pool2d", input)
    return _same("avg_pool2d", input, kernel_size=kernel_size, stride=stride, padding=padding, ceil_mode=ceil_mode,
                 count_include_pad=count_include_pad, divisor_override=divisor_override)  # fmt: skip


def avg_pool3d(input: Tensor, kernel_size: Size, stride: Size | None = None, padding: Size = 0, ceil_mode: bool = False,
               count_include_pad: bool = True, divisor_override: int | None = None) -> Tensor:  # fmt: skip
    """Means of windows of (N, C, D, H, W), on the input's scale."""
    _check("avg_pool3d", input)
    return _same("avg_pool3d", input, kernel_size=kernel_size, stride=stride, padding=padding, ceil_mode=ceil_mode,
                 count_include_pad=count_include_pad, divisor_override=divisor_override)  # fmt: skip


def adaptive_avg_pool2d(input: Tensor, output_size: object) -> Tensor:
    """Means of windows of (N, C, H, W) so that `output_size` (an int or two, None keeps one) remain; on the input's scale."""
    _check("adaptive_avg_pool2d", input)
    return _same("adaptive_avg_pool2d", input, output_size=output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: object) -> Tensor:
    """Means of windows of (N, C, D, H, W) so that `output_size` (an int or three, None keeps one) remain; on the input's scale."""
    _check("adaptive_avg_pool3d", input)
    return _same("adaptive_avg_pool3d", input, output_size=output_size)


def interpolate(input: Tensor, size: object = None, scale_factor: object = None, mode: str = "nearest",
                align_corners: bool | None = None) -> Tensor:  # fmt: skip
    """torch.nn.functional.interpolate on the input's scale; every mode of it."""
    _check("interpolate", input)
    return _same("interpolate", input, size=size, scale_factor=scale_factor, mode=mode, align_corners=align_corners)


def _deprecated(name: str) -> None:
    text = f"nn.quantized.functional.{name} is deprecated. Use nn.quantized.functional.interpolate instead."
    warnings.warn(text, UserWarning, stacklevel=3)  # torch's category: DeprecationWarning would not be shown


def upsample(
    input: Tensor, size: object = None, scale_factor: object = None, mode: str = "nearest", align_corners: bool | None = None
) -> Tensor:
    """Deprecated name of `interpolate`; warns."""
    _deprecated("upsample")
    return interpolate(input, size, scale_factor, mode, align_corners)


def upsample_bilinear(input: Tensor, size: object = None, scale_factor: object = None) -> Tensor:
    """Deprecated: `interpolate` with mode="bilinear", align_corners=True; warns."""
    _deprecated("upsample_bilinear")
    return interpolate(input, size, scale_factor, mode="bilinear", align_corners=True)


def upsample_nearest(input: Tensor, size: object = None, scale_factor: object = None) -> Tensor:
    """Deprecated: `interpolate` with mode="nearest"; warns."""
    _deprecated("upsample_nearest")
    return interpolate(input, size, scale_factor, mode="nearest")


def hardswish(input: Tensor, scale: float, zero_point: int) -> Tensor:
    """x * relu6(x + 3) / 6, at the given qparams."""
    _check("hardswish", input)
    return _own("hardswish", input, scale, zero_point)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """relu6(x + 3) / 6 at scale 1/256 and the smallest zero point, as torch's; `inplace` writes it at the input's qparams."""
    _check("hardsigmoid", input)
    if inplace:
        return input.copy_(_same("hardsigmoid", input))
    return _own("hardsigmoid", input, 1 / 256, 0 if input.dtype is torch.quint8 else -128)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False, scale: float | None = None,
               zero_point: int | None = None) -> Tensor:  # fmt: skip
    """x where x > 0, else negative_slope * x; at the input's qparams unless both `scale` and `zero_point` are given.

    `inplace` writes the result into `input`: ConfigError together with `scale`.
    """
    _check("leaky_relu", input)
    if (scale is None) != (zero_point is None):
        raise ConfigError("leaky_relu takes scale and zero_point together, or neither", code="half-qparams")
    if scale is None or zero_point is None:
        result = _same("leaky_relu", input, negative_slope=negative_slope)
        return input.copy_(result) if inplace else result
    if inplace:
        raise ConfigError("leaky_relu with inplace=True keeps its input's qparams: leave scale and zero_point out", code="inplace-qparams")
    return _own("leaky_relu", input, scale, zero_point, negative_slope=negative_slope)


def elu(input: Tensor, scale: float, zero_point: int, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else alpha * (exp(x) - 1); at the given qparams."""
    _check("elu", input)
    return _own("elu", input, scale, zero_point, alpha=alpha)


def celu(input: Tensor, scale: float, zero_point: int, alpha: float = 1.0) -> Tensor:
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1)), at the given qparams."""
    _check("celu", input)
    return _own("celu", input, scale, zero_point, alpha=alpha)


def clamp(input: Tensor, min_: float | None = None, max_: float | None = None) -> Tensor:
    """Values held between `min_` and `max_` (None: open), on the input's scale."""
    _check("clamp", input)
    return _same("clamp", input, min=min_, max=max_)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """`clamp` by its other name; `inplace` writes the result into `input`."""
    _check("hardtanh", input)
    result = _same("clamp", input, min=min_val, max=max_val)
    return input.copy_(result) if inplace else result


def threshold(input: Tensor, threshold: float, value: float) -> Tensor:
    """x where x > threshold, else `value`; on the input's scale, which may not reach `value`."""
    _check("threshold", input)
    return _same("threshold", input, threshold=threshold, value=value)


functional_script.attach(globals())
