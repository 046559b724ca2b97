"""Canonical calls that torch has no single function for. Float semantics; every stage up to QUANTIZED runs them.

`bounds=(low, high)` clamps the result; None on a side leaves it open, bounds=None is no clamp at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.ops.batch_norm import Norm, batch_norm_of_batch

Bounds = tuple[float | None, float | None] | None
Ints: TypeAlias = int | tuple[int, ...]  # one number for all dimensions, or one for each
Sizes: TypeAlias = tuple[int, ...] | list[int]
Padding: TypeAlias = Ints | str


def clip(x: Tensor, bounds: Bounds) -> Tensor:
    """A value that nobody else has, within bounds: in the same memory, but for integers, gradients, which need it as it was, and traces."""
    if bounds is None:
        return x
    in_place = type(x) is Tensor and x.is_floating_point() and not x.requires_grad
    return torch.clamp_(x, bounds[0], bounds[1]) if in_place else torch.clamp(x, bounds[0], bounds[1])


def pad_for(x: Tensor, padding: Padding, dims: int, mode: str) -> tuple[Tensor, Padding]:
    """Applies a padding mode that convolution kernels lack; returns the padded input and what padding remains."""
    if mode == "zeros" or not isinstance(padding, Sequence) or isinstance(padding, str):
        return x, padding
    sides = [p for size in reversed(padding) for p in (size, size)]
    return F.pad(x, sides, mode=mode), (0,) * dims


def conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1,
           groups: int = 1, padding_mode: str = "zeros", bounds: Bounds = None) -> Tensor:  # fmt: skip
    x, padding = pad_for(x, padding, 1, padding_mode)
    return clip(F.conv1d(x, weight, bias, stride, padding, dilation, groups), bounds)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1,
           groups: int = 1, padding_mode: str = "zeros", bounds: Bounds = None) -> Tensor:  # fmt: skip
    x, padding = pad_for(x, padding, 2, padding_mode)
    return clip(F.conv2d(x, weight, bias, stride, padding, dilation, groups), bounds)


def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1,
           groups: int = 1, padding_mode: str = "zeros", bounds: Bounds = None) -> Tensor:  # fmt: skip
    x, padding = pad_for(x, padding, 3, padding_mode)
    return clip(F.conv3d(x, weight, bias, stride, padding, dilation, groups), bounds)


def conv_transpose1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: Ints = 1, padding: Ints = 0,
                     output_padding: Ints = 0, groups: int = 1, dilation: Ints = 1, bounds: Bounds = None) -> Tensor:  # fmt: skip
    return clip(F.conv_transpose1d(x, weight, bias, stride, padding, output_padding, groups, dilation), bounds)


def conv_transpose2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: Ints = 1, padding: Ints = 0,
                     output_padding: Ints = 0, groups: int = 1, dilation: Ints = 1, bounds: Bounds = None) -> Tensor:  # fmt: skip
    return clip(F.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation), bounds)


def conv_transpose3d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: Ints = 1, padding: Ints = 0,
                     output_padding: Ints = 0, groups: int = 1, dilation: Ints = 1, bounds: Bounds = None) -> Tensor:  # fmt: skip
    return clip(F.conv_transpose3d(x, weight, bias, stride, padding, output_padding, groups, dilation), bounds)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, bounds: Bounds = None) -> Tensor:
    return clip(F.linear(x, weight, bias), bounds)


def linear_leaky_relu(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, negative_slope: float = 0.01) -> Tensor:
    return F.leaky_relu(F.linear(x, weight, bias), negative_slope)


def linear_tanh(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.tanh(F.linear(x, weight, bias))


def conv2d_add(x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor, *, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1,
               groups: int = 1, padding_mode: str = "zeros", bounds: Bounds = None) -> Tensor:  # fmt: skip
    x, padding = pad_for(x, padding, 2, padding_mode)
    return clip(F.conv2d(x, weight, bias, stride, padding, dilation, groups) + other, bounds)


def batch_norm(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None = None, bias: Tensor | None = None,
               count: Tensor | None = None, *, training: bool = False, momentum: float | None = 0.1, eps: float = 1e-5,
               bounds: Bounds = None) -> Tensor:  # fmt: skip
    """BatchNorm, any number of trailing dimensions. With `training` it uses the batch's statistics and moves mean, var and count."""
    if training:
        return clip(batch_norm_of_batch(x, Norm(mean, var, weight, bias, eps), count, momentum), bounds)
    return clip(F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), bounds)


def _is_one(alpha: object) -> bool:
    """A number that is computed at run time may be 1, but nobody knows."""
    return isinstance(alpha, (int, float)) and alpha == 1


def add(x: Tensor, other: Tensor | float, *, alpha: float = 1, bounds: Bounds = None) -> Tensor:
    return clip(x + other if _is_one(alpha) else torch.add(x, other, alpha=alpha), bounds)


def sub(x: Tensor | float, other: Tensor, *, alpha: float = 1, bounds: Bounds = None) -> Tensor:
    if isinstance(x, (int, float)):  # what TorchScript makes of `2 - y` may lie otherwise in memory than y, and float kernels read that
        return clip(torch.rsub(other, x, alpha=alpha) if not _is_one(alpha) else torch.rsub(other, x), bounds)
    return clip(x - other if _is_one(alpha) else torch.sub(x, other, alpha=alpha), bounds)


def mul(x: Tensor, other: Tensor | float, *, bounds: Bounds = None) -> Tensor:
    return clip(x * other, bounds)


def div(x: Tensor, other: Tensor | float, *, bounds: Bounds = None) -> Tensor:
    return clip(x / other, bounds)


def matmul(x: Tensor, other: Tensor, *, bounds: Bounds = None) -> Tensor:
    return clip(torch.matmul(x, other), bounds)


def clamp(x: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    return torch.clamp(x, min, max)


def getitem(x: Any, index: Any) -> Any:
    return x[index]


def reshape(x: Tensor, shape: Sizes) -> Tensor:
    return x.reshape(shape)


def permute(x: Tensor, dims: Sizes) -> Tensor:
    return x.permute(dims)


def tensor_split(x: Tensor, indices_or_sections: Ints | Tensor, dim: int = 0) -> Sequence[Tensor]:
    return x.tensor_split(indices_or_sections, dim)


def pad(x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """F.pad; the value is a float, since TorchScript takes no integer for it."""
    return F.pad(x, pad, mode, float(value) if isinstance(value, int) else value)


def split(x: Tensor, split_size_or_sections: int | Sizes, dim: int = 0) -> tuple[Tensor, ...]:
    # a method: TorchScript has other names for the arguments of torch.split
    parts: tuple[Tensor, ...] = x.split(split_size_or_sections, dim)
    return parts


def interpolate(x: Tensor, size: Ints | None = None, scale_factor: float | tuple[float, ...] | list[float] | None = None,
                mode: str = "nearest", align_corners: bool | None = None, recompute_scale_factor: bool | None = None,
                antialias: bool = False) -> Tensor:  # fmt: skip
    """F.interpolate; factors are floats, since TorchScript takes no integers for them."""
    if isinstance(scale_factor, (tuple, list)):
        scale_factor = [float(f) if isinstance(f, int) else f for f in scale_factor]
    elif isinstance(scale_factor, int):
        scale_factor = float(scale_factor)
    return F.interpolate(x, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)


def unfold_dimension(x: Tensor, dimension: int, size: int, step: int) -> Tensor:
    return x.unfold(dimension, size, step)


def repeat(x: Tensor, sizes: Sizes) -> Tensor:
    return x.repeat(sizes)


def expand(x: Tensor, sizes: Sizes) -> Tensor:
    return x.expand(sizes)


def mean(x: Tensor, dim: Ints | None = None, keepdim: bool = False) -> Tensor:
    return x.mean() if dim is None else x.mean(dim, keepdim)


def sum(x: Tensor, dim: Ints | None = None, keepdim: bool = False) -> Tensor:
    return x.sum() if dim is None else x.sum(dim, keepdim)


def contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def to_format(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    return x.to(memory_format=memory_format)


def squeeze(x: Tensor, dim: Ints | None = None) -> Tensor:
    return x.squeeze() if dim is None else x.squeeze(dim)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, normalized_shape: Sizes,
               eps: float = 1e-5) -> Tensor:  # fmt: skip
    return F.layer_norm(x, normalized_shape, weight, bias, eps)


def group_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, num_groups: int = 1, eps: float = 1e-5) -> Tensor:
    return F.group_norm(x, num_groups, weight, bias, eps)


def instance_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=weight, bias=bias, use_input_stats=True, eps=eps)


def rms_norm(x: Tensor, weight: Tensor | None = None, *, normalized_shape: Sizes, eps: float | None = None) -> Tensor:
    return F.rms_norm(x, normalized_shape, weight, eps)


def dropout(x: Tensor, p: float = 0.5, training: bool = True, kind: str = "dropout") -> Tensor:
    """`kind` names the function of torch.nn.functional: dropout, dropout1d, alpha_dropout..."""
    dropped: Tensor = getattr(F, kind)(x, p, training)
    return dropped


def embedding(indices: Tensor, weight: Tensor) -> Tensor:
    """Rows of `weight` (R, C): indices (...) -> (..., C)."""
    return F.embedding(indices, weight)


def embedding_bag(indices: Tensor, weight: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None, *,
                  mode: str = "mean", include_last_offset: bool = False, padding_idx: int | None = None) -> Tensor:  # fmt: skip
    """Sum, mean or max of the rows of each bag: indices (B, L), or flat with `offsets` (B,), where bags begin -> (B, C)."""
    return F.embedding_bag(indices, weight, offsets, norm_type=2.0, mode=mode, per_sample_weights=per_sample_weights,
                           include_last_offset=include_last_offset, padding_idx=padding_idx)  # fmt: skip


def stochastic_depth(x: Tensor, p: float, mode: str, training: bool = True) -> Tensor:
    """torchvision's layer drop: in eval mode the identity; in training each row (or the batch) is kept with probability 1 - p."""
    if not training or p == 0.0:
        return x
    shape = [x.shape[0] if mode == "row" else 1, *[1] * (x.dim() - 1)]
    keep = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1.0 - p)
    return x * keep.div_(1.0 - p)
