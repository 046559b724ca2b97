"""Where the elements of a copy come from, axis by axis: pads, rolls, flips, repeats and picks as lists of indices.

A function takes the shape of x and the op's arguments, and gives a list for each axis of the result: the index along the same axis of x,
OUTSIDE for what is filled. Axes that the result has more stand in front and have one index, 0, or repeat it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcompiler.backends.native.plan.place import Axes

Indices = NDArray[np.int64]
Many = int | Sequence[int]
OUTSIDE = -1
MOST = 2**31  # elements along an axis


def whole(n: int) -> Indices:
    return np.arange(n, dtype=np.int64)


def pad(shape: Axes, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> list[Indices]:
    """F.pad: pairs (before, after), the last axis first. Negative numbers crop."""
    pairs = [(0, 0)] * (len(shape) - len(pad) // 2) + [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]
    if len(pairs) != len(shape) or len(pad) % 2:
        raise ValueError(f"a padding of {len(pad)} numbers for {len(shape)} dimensions")
    return [_padded(n, before, after, mode) for n, (before, after) in zip(shape, pairs, strict=True)]


def _padded(n: int, before: int, after: int, mode: str) -> Indices:
    if not (0 <= n + before + after < MOST):
        raise ValueError(f"a padding of {before} and {after} around {n} elements")
    at = np.arange(-before, n + after, dtype=np.int64)
    if mode == "constant" or not (before or after):
        return np.where((at >= 0) & (at < n), at, OUTSIDE)
    most = {"reflect": n - 1, "circular": n}.get(mode, MOST)
    if max(before, after) > most or (n == 0 and len(at)):
        raise ValueError(f"a padding of {before} and {after} around {n} elements in mode {mode!r:.20}")
    if mode == "reflect":
        return np.where(at < 0, -at, np.where(at >= n, 2 * (n - 1) - at, at))
    return at % n if mode == "circular" else np.clip(at, 0, n - 1)


def roll(shape: Axes, shifts: Many, dims: Many = ()) -> list[Indices]:
    """torch.roll along named axes; without them see `flat`."""
    found = [whole(n) for n in shape]
    for shift, dim in zip(_many(shifts), _many(dims), strict=True):
        found[dim] = np.roll(found[dim], shift)
    return found


def flip(shape: Axes, dims: Many) -> list[Indices]:
    found = [whole(n) for n in shape]
    for dim in _many(dims):
        found[dim] = found[dim][::-1]
    return found


def repeat(shape: Axes, sizes: Sequence[int]) -> list[Indices]:
    """Tensor.repeat."""
    given = (1,) * (len(sizes) - len(shape)) + shape
    return [np.tile(whole(n), times) for n, times in zip(given, sizes, strict=True)]


def repeat_interleave(shape: Axes, repeats: int | Tensor, dim: int) -> list[Indices]:
    found = [whole(n) for n in shape]
    times = repeats.numpy() if isinstance(repeats, Tensor) else repeats
    found[dim] = np.repeat(found[dim], times)
    return found


def index_select(shape: Axes, dim: int, index: Tensor) -> list[Indices]:
    found = [whole(n) for n in shape]
    picked = index.reshape(-1).numpy().astype(np.int64)
    if len(picked) and not (picked.min() >= 0 and picked.max() < shape[dim]):
        raise ValueError(f"an index outside of 0..{shape[dim] - 1}")
    found[dim] = picked
    return found


def apart(shape: Axes, dim: int, size: int, before: int, step: int) -> list[Indices]:
    """`size` elements along an axis, of which every `step`-th is one of x, the first behind `before` others; nothing between."""
    found, at = [whole(n) for n in shape], np.arange(-before, size - before, dtype=np.int64)
    found[dim] = np.where((at >= 0) & (at % step == 0) & (at < shape[dim] * step), at // step, OUTSIDE)
    return found


def apart_of(x: Tensor, dim: int, size: int, before: int, step: int) -> Tensor:
    """A tensor of the shape that `apart` gives."""
    shape = list(x.shape)
    shape[dim] = size
    return x.new_empty(shape)


ALONG_AXES: Mapping[str, Callable[..., list[Indices]]] = {
    "pad": pad, "roll": roll, "flip": flip, "repeat": repeat, "repeat_interleave": repeat_interleave, "index_select": index_select,
    "apart": apart,
}  # fmt: skip


def flat(shape: Axes, function: Callable[..., Tensor], *args: object, **kwargs: object) -> Tensor:
    """For each element of a result which element of x it is, counted in row-major order: the function itself says it. 0: what is filled."""
    numbers = torch.arange(1, math.prod(shape) + 1, dtype=torch.int64).reshape(shape)
    return function(numbers, *args, **kwargs)


def _many(value: Many) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
