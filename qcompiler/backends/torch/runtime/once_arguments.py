"""What the functions that run when a module is built accept: a check for each, made before torch's C++ code sees the arguments.

A program may come from a file that anybody wrote. torch's packing functions divide by `groups` and `stride`, cast sizes to 32 bits
and believe lengths: such arguments end the process. Results grow from the tensors that the file holds by GROWTH at most.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence

import torch

from qcompiler.ir.check_qparams import scale_fault, zero_point_fault

GROWTH = 4096  # of a result against its tensors: a transposed convolution of stride 64 x 64 grows by as much
SIZES = 2**24  # of strides, paddings, dilations: kernels compute offsets from them in 32 bits


class ArgumentError(ValueError):
    """An argument that a packing function must not get."""


class Given:
    """The arguments of one call by name, each read as what it has to be: ArgumentError, naming it, where it is not."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self.values = values

    def tensor(self, name: str, dtypes: Sequence[torch.dtype], dims: int | None = None) -> torch.Tensor:
        return _tensor(self.values[name], name, dtypes, dims)

    def integer(self, name: str, low: int, high: int) -> int:
        return _integer(self.values[name], name, low, high)

    def integers(self, name: str, length: int, low: int, high: int = SIZES) -> Sequence[int]:
        value = self.values[name]
        if not isinstance(value, (list, tuple)) or len(value) != length:
            raise ArgumentError(f"{name} has not {length} entries")
        return [_integer(item, name, low, high) for item in value]

    def scales(self, count: int, dtype: torch.dtype, of: str = "") -> None:
        """One scale and zero point for each of `count` channels, or one for all, of a weight's codes; `of`: ends their names."""
        scale = self.tensor(f"scale{of}", (torch.float32, torch.float64))
        zero_point = self.tensor(f"zero_point{of}", (torch.float32, torch.float64, torch.int64, torch.int32))
        _require(scale.numel() == zero_point.numel() == count and scale.dim() <= 1, f"{scale.numel()} scales for {count} channels")
        fault = scale_fault(scale) or zero_point_fault(zero_point, dtype)
        _require(not fault, fault)

    def bias(self, channels: int, name: str = "bias") -> None:
        if self.values[name] is not None:
            bias = self.tensor(name, (torch.float32,), 1)
            _require(bias.shape[0] == channels, f"{name} has {bias.shape[0]} entries for {channels} channels")

    def quantized(self, dims: int | None = None) -> torch.Tensor:
        """The weight of a layer, whose scales go along `axis`."""
        weight = self.tensor("weight", (torch.int8,) if dims is not None else (torch.int8, torch.uint8), dims)
        axis = self.integer("axis", -1, weight.dim() - 1)
        self.scales(weight.shape[axis] if axis >= 0 else 1, weight.dtype)
        return weight

    def divided(self, name: str, channels: int) -> int:
        """Into how many groups channels are divided."""
        groups = self.integer(name, 1, max(channels, 1))
        _require(channels % groups == 0, f"{channels} channels in {groups} groups")
        return groups

    def filled(self, axis: int) -> torch.Tensor:
        """The weight of a convolution, and the zero points, along an axis, that fill what is added to it."""
        weight = self.tensor("weight", (torch.int8,))
        _require(weight.dim() >= 3, f"weight has {weight.dim()} dimensions")
        zero_point, channels = self.tensor("zero_point", (torch.int64, torch.int32)), weight.shape[axis]
        _require(zero_point.numel() in (1, channels), f"{zero_point.numel()} zero points for {channels} channels")
        return weight

    def rows(self, name: str, dtypes: Sequence[torch.dtype], codes: torch.dtype | None = None) -> torch.Tensor:
        """A table with a scale for each row, or one for all."""
        table, scale = self.tensor(name, dtypes, 2), self.values["scale"]
        self.scales(1 if isinstance(scale, torch.Tensor) and scale.numel() == 1 else table.shape[0], codes or table.dtype)
        return table


def check_once(function: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]) -> None:
    """Raises ArgumentError, naming the argument, unless a function with `once = True` may be called so."""
    try:
        bound = _signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise ArgumentError(f"{function.__name__}: {error}") from None
    bound.apply_defaults()
    try:
        CHECKS[function.__name__](Given(bound.arguments))
    except ArgumentError as error:
        raise ArgumentError(f"{function.__name__}: {error}") from None


@functools.cache
def _signature(function: Callable[..., object]) -> inspect.Signature:
    return inspect.signature(function)


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise ArgumentError(text)


def _tensor(value: object, name: str, dtypes: Sequence[torch.dtype], dims: int | None) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.device.type != "cpu":
        raise ArgumentError(f"{name} is no tensor on the CPU")
    _require(value.dtype in dtypes, f"{name} is {value.dtype}")
    _require(dims is None or value.dim() == dims, f"{name} has {value.dim()} dimensions")
    return value


def _integer(value: object, name: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ArgumentError(f"{name} is {value!r:.40}, not {low} to {high}")
    return value


def _conv(given: Given, rank: int) -> None:
    weight = given.quantized(rank + 2)
    given.bias(weight.shape[0])
    given.integers("stride", rank, 1)
    given.integers("padding", rank, 0)
    given.integers("dilation", rank, 1)
    given.divided("groups", weight.shape[0])


def _linear(given: Given) -> None:
    given.bias(given.quantized(2).shape[0])


def _half(given: Given) -> None:
    given.bias(given.tensor("weight", (torch.float16,), 2).shape[0])


def _float_weight(given: Given) -> None:
    given.quantized()


def _widened(given: Given) -> None:
    given.tensor("weight", (torch.float16, torch.bfloat16, torch.float32))


def _split_phases(given: Given) -> None:
    weight = given.filled(1)
    stride = given.integers("stride", weight.dim() - 2, 1)
    given.divided("groups", weight.shape[0])
    grown = math.prod(-(-size // s) * s for size, s in zip(weight.shape[2:], stride, strict=True))
    _require(grown <= GROWTH * max(math.prod(weight.shape[2:]), 1), f"a stride of {list(stride)} for a window of {list(weight.shape[2:])}")


def _repeat_channels(given: Given) -> None:
    x = given.tensor("x", (torch.float32, torch.float64, torch.int64, torch.int32))
    groups = given.integer("groups", 1, max(x.numel(), 1))
    given.integer("count", 1, GROWTH)
    _require(x.numel() % groups == 0, f"{x.numel()} values in {groups} groups")


def _merge_groups(given: Given) -> None:
    weight = given.filled(0)
    groups = given.divided("groups", weight.shape[0])
    size = given.integer("size", 1, min(groups, GROWTH))
    _require(groups % size == 0, f"{groups} groups, {size} at once")


def _larger_window(given: Given) -> None:
    weight = given.filled(0)
    _require(weight.dim() in (3, 4), f"weight has {weight.dim()} dimensions")
    window = given.integer("window", max(weight.shape[2:]), GROWTH)
    most = GROWTH * max(weight.numel(), 1)
    outputs = given.integer("outputs", weight.shape[0], max(most, weight.shape[0]))
    _require(outputs * weight.shape[1] * window**2 <= most, f"{outputs} windows of {window} x {window} from {list(weight.shape)}")


def _more_channels(given: Given) -> None:
    x = given.tensor("x", (torch.float32, torch.float64, torch.int64, torch.int32), 1)
    _require(x.numel() > 0, "x is empty")
    given.integer("count", x.numel(), GROWTH * x.numel())
    value = given.values["value"]
    _require(isinstance(value, float) and math.isfinite(value), f"value is {value!r:.40}")


def _constant(given: Given) -> None:
    given.tensor("x", (torch.float32,))
    scale = given.values["scale"]
    _require(isinstance(scale, float) and math.isfinite(scale) and scale > 0, f"scale is {scale!r:.40}")
    given.integer("zero_point", 0, 255)


def _rows_8bit(given: Given) -> None:
    given.rows("weight", (torch.int8, torch.uint8))


def _rows_4bit(given: Given) -> None:
    given.rows("packed", (torch.uint8,))


def _unpacked_4bit(given: Given) -> None:
    given.integer("columns", 0, 2 * given.rows("packed", (torch.uint8,)).shape[1])


def _cell(given: Given) -> None:
    per_channel = given.values["per_channel"]
    _require(isinstance(per_channel, bool) and isinstance(given.values["reduce_range"], bool), "a flag is no bool")
    weights = [given.tensor(f"w{of}", (torch.int8,), 2) for of in ("_ih", "_hh")]
    for of, weight in zip(("_ih", "_hh"), weights, strict=True):
        given.scales(weight.shape[0] if per_channel is True else 1, torch.int8, of)
    _same_rows(given, weights)


def _cell_half(given: Given) -> None:
    _same_rows(given, [given.tensor(name, (torch.float16,), 2) for name in ("w_ih", "w_hh")])


def _same_rows(given: Given, weights: Sequence[torch.Tensor]) -> None:
    rows = [weight.shape[0] for weight in weights]
    _require(rows[0] == rows[1], f"{rows[0]} and {rows[1]} rows")
    given.bias(rows[0], "b_ih")
    given.bias(rows[1], "b_hh")


def _region(given: Given) -> None:
    """The steps check themselves where they become layers; here that they refer to tensors and numbers."""
    tensors, scales, zero_points = (given.values[name] for name in ("tensors", "scales", "zero_points"))
    _require(isinstance(given.values["description"], dict), "the description of a native region is no dict")
    for tensor in tensors if isinstance(tensors, (list, tuple)) else (None,):
        _require(isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu", "a native region has no tensors")
    if not isinstance(scales, (list, tuple)) or not isinstance(zero_points, (list, tuple)) or len(scales) != len(zero_points):
        raise ArgumentError("a native region has not as many scales as zero points")


CHECKS: Mapping[str, Callable[[Given], None]] = {
    "float_weight": _float_weight,
    "larger_window": _larger_window,
    "merge_groups": _merge_groups,
    "more_channels": _more_channels,
    "native_region": _region,
    "prepack_cell": _cell,
    "prepack_cell_half": _cell_half,
    "prepack_conv1d": functools.partial(_conv, rank=1),
    "prepack_conv2d": functools.partial(_conv, rank=2),
    "prepack_conv3d": functools.partial(_conv, rank=3),
    "prepack_linear": _linear,
    "prepack_linear_as_conv2d": _linear,
    "prepack_linear_half": _half,
    "quantize_constant": _constant,
    "repeat_channels": _repeat_channels,
    "rows_4bit": _rows_4bit,
    "rows_8bit": _rows_8bit,
    "split_phases": _split_phases,
    "unpacked_4bit": _unpacked_4bit,
    "widened": _widened,
}
