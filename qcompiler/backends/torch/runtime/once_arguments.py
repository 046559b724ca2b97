"""What the functions that run when a module is built accept: a check for each, made before torch's C++ code sees the arguments.

A program may come from a file that anybody wrote. torch's packing functions divide by `groups` and `stride`, cast sizes to 32 bits
and believe lengths: such arguments end the process. Results grow from the tensors that the file holds by GROWTH at most.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from qcompiler.ir.check_qparams import scale_fault, zero_point_fault

GROWTH = 4096  # of a result against its tensors: a transposed convolution of stride 64 x 64 grows by as much
SIZES = 2**24  # of strides, paddings, dilations: kernels compute offsets from them in 32 bits


class ArgumentError(ValueError):
    """An argument that a packing function must not get."""


def check_once(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises ArgumentError, naming the argument, unless a function with `once = True` may be called so."""
    try:
        bound = _signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise ArgumentError(f"{function.__name__}: {error}") from None
    bound.apply_defaults()
    try:
        CHECKS[function.__name__](**bound.arguments)
    except ArgumentError as error:
        raise ArgumentError(f"{function.__name__}: {error}") from None


@functools.cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise ArgumentError(text)


def _tensor(value: Any, name: str, dtypes: Sequence[torch.dtype], dims: int | None = None) -> None:
    _require(isinstance(value, torch.Tensor) and value.device.type == "cpu", f"{name} is no tensor on the CPU")
    _require(value.dtype in dtypes, f"{name} is {value.dtype}")
    _require(dims is None or value.dim() == dims, f"{name} has {value.dim()} dimensions")


def _integer(value: Any, name: str, low: int, high: int) -> None:
    _require(type(value) is int and low <= value <= high, f"{name} is {value!r:.40}, not {low} to {high}")


def _integers(value: Any, name: str, length: int, low: int, high: int = SIZES) -> None:
    _require(isinstance(value, (list, tuple)) and len(value) == length, f"{name} has not {length} entries")
    for item in value:
        _integer(item, name, low, high)


def _scales(scale: Any, zero_point: Any, count: int, dtype: torch.dtype) -> None:
    """One scale and zero point for each of `count` channels, or one for all, of a weight's codes."""
    _tensor(scale, "scale", (torch.float32, torch.float64))
    _tensor(zero_point, "zero_point", (torch.float32, torch.float64, torch.int64, torch.int32))
    _require(scale.numel() == zero_point.numel() == count and scale.dim() <= 1, f"{scale.numel()} scales for {count} channels")
    fault = scale_fault(scale) or zero_point_fault(zero_point, dtype)
    _require(not fault, fault)


def _bias(bias: Any, channels: int) -> None:
    if bias is not None:
        _tensor(bias, "bias", (torch.float32,), 1)
        _require(bias.shape[0] == channels, f"bias has {bias.shape[0]} entries for {channels} channels")


def _quantized(weight: Any, scale: Any, zero_point: Any, axis: int, dims: int | None = None) -> None:
    _tensor(weight, "weight", (torch.int8,) if dims is not None else (torch.int8, torch.uint8), dims)
    _integer(axis, "axis", -1, weight.dim() - 1)
    _scales(scale, zero_point, weight.shape[axis] if axis >= 0 else 1, weight.dtype)


def _conv(rank: int) -> Callable[..., None]:
    def check(
        *, weight: Any, scale: Any, zero_point: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any, axis: Any, tag: Any
    ) -> None:  # fmt: skip
        _quantized(weight, scale, zero_point, axis, rank + 2)
        _bias(bias, weight.shape[0])
        _integers(stride, "stride", rank, 1)
        _integers(padding, "padding", rank, 0)
        _integers(dilation, "dilation", rank, 1)
        _integer(groups, "groups", 1, max(weight.shape[0], 1))
        _require(weight.shape[0] % groups == 0, f"{weight.shape[0]} channels in {groups} groups")

    return check


def _linear(*, weight: Any, scale: Any, zero_point: Any, bias: Any, axis: Any, tag: Any) -> None:
    _quantized(weight, scale, zero_point, axis, 2)
    _bias(bias, weight.shape[0])


def _half(*, weight: Any, bias: Any) -> None:
    _tensor(weight, "weight", (torch.float16,), 2)
    _bias(bias, weight.shape[0])


def _float_weight(*, weight: Any, scale: Any, zero_point: Any, axis: Any) -> None:
    _quantized(weight, scale, zero_point, axis)


def _widened(*, weight: Any) -> None:
    _tensor(weight, "weight", (torch.float16, torch.bfloat16, torch.float32))


def _zeros(weight: Any, zero_point: Any, channels: int) -> None:
    """Weights and the zero points that fill what is added to them."""
    _tensor(weight, "weight", (torch.int8,))
    _tensor(zero_point, "zero_point", (torch.int64, torch.int32))
    _require(zero_point.numel() in (1, channels), f"{zero_point.numel()} zero points for {channels} channels")


def _split_phases(*, weight: Any, zero_point: Any, stride: Any, groups: Any) -> None:
    _tensor(weight, "weight", (torch.int8,))
    _require(weight.dim() >= 3, f"weight has {weight.dim()} dimensions")
    _zeros(weight, zero_point, weight.shape[1])
    _integers(stride, "stride", weight.dim() - 2, 1)
    _integer(groups, "groups", 1, max(weight.shape[0], 1))
    _require(weight.shape[0] % groups == 0, f"{weight.shape[0]} channels in {groups} groups")
    grown = math.prod(-(-size // s) * s for size, s in zip(weight.shape[2:], stride, strict=True))
    _require(grown <= GROWTH * max(math.prod(weight.shape[2:]), 1), f"a stride of {list(stride)} for a window of {list(weight.shape[2:])}")


def _repeat_channels(*, x: Any, groups: Any, count: Any) -> None:
    _tensor(x, "x", (torch.float32, torch.float64, torch.int64, torch.int32))
    _integer(groups, "groups", 1, max(x.numel(), 1))
    _integer(count, "count", 1, GROWTH)
    _require(x.numel() % groups == 0, f"{x.numel()} values in {groups} groups")


def _merge_groups(*, weight: Any, zero_point: Any, groups: Any, size: Any) -> None:
    _tensor(weight, "weight", (torch.int8,))
    _require(weight.dim() >= 3, f"weight has {weight.dim()} dimensions")
    _zeros(weight, zero_point, weight.shape[0])
    _integer(groups, "groups", 1, max(weight.shape[0], 1))
    _integer(size, "size", 1, min(groups, GROWTH))
    _require(weight.shape[0] % groups == 0 and groups % size == 0, f"{weight.shape[0]} channels in {groups} groups, {size} at once")


def _constant(*, x: Any, scale: Any, zero_point: Any) -> None:
    _tensor(x, "x", (torch.float32,))
    _require(isinstance(scale, float) and math.isfinite(scale) and scale > 0, f"scale is {scale!r:.40}")
    _integer(zero_point, "zero_point", 0, 255)


def _rows_8bit(*, weight: Any, scale: Any, zero_point: Any) -> None:
    _tensor(weight, "weight", (torch.int8, torch.uint8), 2)
    _scales(scale, zero_point, 1 if isinstance(scale, torch.Tensor) and scale.numel() == 1 else weight.shape[0], weight.dtype)


def _rows_4bit(*, packed: Any, scale: Any, zero_point: Any) -> None:
    _tensor(packed, "packed", (torch.uint8,), 2)
    _scales(scale, zero_point, 1 if isinstance(scale, torch.Tensor) and scale.numel() == 1 else packed.shape[0], torch.uint8)


def _unpacked_4bit(*, packed: Any, scale: Any, zero_point: Any, columns: Any) -> None:
    _rows_4bit(packed=packed, scale=scale, zero_point=zero_point)
    _integer(columns, "columns", 0, 2 * packed.shape[1])


def _cell(
    *, w_ih: Any, scale_ih: Any, zero_point_ih: Any, w_hh: Any, scale_hh: Any, zero_point_hh: Any, b_ih: Any, b_hh: Any,
    per_channel: Any, reduce_range: Any
) -> None:  # fmt: skip
    axis = 0 if per_channel is True else -1
    _require(isinstance(per_channel, bool) and isinstance(reduce_range, bool), "a flag is no bool")
    _quantized(w_ih, scale_ih, zero_point_ih, axis, 2)
    _quantized(w_hh, scale_hh, zero_point_hh, axis, 2)
    _same_rows(w_ih, w_hh, b_ih, b_hh)


def _cell_half(*, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> None:
    _tensor(w_ih, "w_ih", (torch.float16,), 2)
    _tensor(w_hh, "w_hh", (torch.float16,), 2)
    _same_rows(w_ih, w_hh, b_ih, b_hh)


def _same_rows(w_ih: torch.Tensor, w_hh: torch.Tensor, b_ih: Any, b_hh: Any) -> None:
    _require(w_ih.shape[0] == w_hh.shape[0], f"{w_ih.shape[0]} and {w_hh.shape[0]} rows")
    _bias(b_ih, w_ih.shape[0])
    _bias(b_hh, w_hh.shape[0])


def _region(*, description: Any, tensors: Any, scales: Any, zero_points: Any) -> None:
    """The steps check themselves where they become layers; here that they refer to tensors and numbers."""
    _require(isinstance(description, dict), "the description of a native region is no dict")
    _require(all(isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu" for tensor in tensors), "a native region has no tensors")
    _require(len(scales) == len(zero_points), f"{len(scales)} scales and {len(zero_points)} zero points")


CHECKS: Mapping[str, Callable[..., None]] = {
    "float_weight": _float_weight,
    "merge_groups": _merge_groups,
    "native_region": _region,
    "prepack_cell": _cell,
    "prepack_cell_half": _cell_half,
    "prepack_conv1d": _conv(1),
    "prepack_conv2d": _conv(2),
    "prepack_conv3d": _conv(3),
    "prepack_linear": _linear,
    "prepack_linear_half": _half,
    "quantize_constant": _constant,
    "repeat_channels": _repeat_channels,
    "rows_4bit": _rows_4bit,
    "rows_8bit": _rows_8bit,
    "split_phases": _split_phases,
    "unpacked_4bit": _unpacked_4bit,
    "widened": _widened,
}
