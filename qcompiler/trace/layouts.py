"""How tensors lie in memory: strides of a layout, tensors made in one.

Of several dimensions those of size 1 have no place in memory, and any stride.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

Layout: TypeAlias = Callable[[Sequence[int], torch.dtype], torch.Tensor]


def order_of(tensor: torch.Tensor) -> list[int]:
    """The dimensions of a tensor from the outermost to the innermost."""
    dims, strides = range(tensor.dim()), tensor.stride()
    return list(dims) if tensor.is_contiguous() else sorted(dims, key=lambda dim: (-strides[dim], dim))


def strides_in(order: Sequence[int], shape: Sequence[int]) -> list[int]:
    """Those of elements side by side, with the dimensions in this order from the outermost to the innermost."""
    strides = [1] * len(shape)
    for outer, inner in zip(order[-2::-1], order[:0:-1], strict=True):
        strides[outer] = strides[inner] * shape[inner]
    return strides


def contiguous(rank: int) -> list[int]:
    return list(range(rank))


def channels_last(rank: int) -> list[int]:
    return [0, *range(2, rank), 1]


def is_in_either(value: torch.Tensor) -> bool:
    """Whether a tensor is contiguous and channels_last at once; only strides that mean nothing tell which."""
    if value.dim() < 3 or 1 not in value.shape:
        return False
    a, b = (strides_in(order(value.dim()), value.shape) for order in (contiguous, channels_last))
    return a != b and all(one == other for n, one, other in zip(value.shape, a, b, strict=True) if n != 1)


def in_order(order: Sequence[int]) -> Layout:
    """Elements side by side, with the dimensions in this order in memory."""

    def made(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty([shape[dim] for dim in order], dtype=dtype).permute([order.index(dim) for dim in range(len(order))])

    return made


def as_sliced(layout: Layout) -> Layout:
    """The same with other strides of the dimensions of size 1: those of an image that became a batch by `[None]`."""

    def made(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        tensor = layout(shape, dtype)
        return tensor.as_strided(tensor.shape, [1 if n == 1 else stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)])

    return made


def with_gaps(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Every other element of each row."""
    return torch.empty([*shape[:-1], 2 * shape[-1]], dtype=dtype)[..., ::2] if shape else torch.empty(shape, dtype=dtype)
