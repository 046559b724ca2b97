"""A depthwise convolution behind uneven padding, as TensorFlow-style "same" models write it, as fbgemm's fast kernel can take it.

That kernel takes centred padding only; the way around it is 50 times slower. A convolution with stride s behind zeros a before and
b = (k - 1) / 2 after equals the centred one with stride 1, of which every s-th result is kept from (k - 1) / 2 - a on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from qcompiler.compile.rewrite import Reject
from qcompiler.ops.functional import pad
from qcompiler.patterns.padding import sides_of


@dataclass(frozen=True)
class Centring:
    """The centred padding, and the index by which its results are kept."""

    padding: tuple[int, ...]
    index: tuple[slice, ...]

    def settings(self, given: Mapping[str, object]) -> dict[str, Any]:
        """The keywords of the centred convolution, from those of the one that it stands for."""
        return {**{name: value for name, value in given.items() if name != "stride"}, "padding": self.padding}


def centring_of(before: object, shape: tuple[int, ...], settings: Mapping[str, object]) -> Centring | None:
    """How the convolution behind the node `before` is centred; None where that is no uneven zero padding which ends as a centred one
    would, or the convolution no plain depthwise one. `shape`: its weight's, (O, I/g, *kernel); `settings`: its keywords."""
    dims = len(shape) - 2
    if not isinstance(before, fx.Node) or before.target is not pad or dims < 1 or shape[1] != 1 or settings.get("groups", 1) == 1:
        return None
    plain = settings.get("padding", 0) in (0, (0,) * dims) and settings.get("dilation", 1) in (1, (1,) * dims)
    if not plain or any(k % 2 == 0 for k in shape[2:]):
        return None
    try:
        sides = sides_of(before, dims)
    except Reject:
        return None
    half = tuple((k - 1) // 2 for k in shape[2:])
    if all(a == b for a, b in sides) or any(b != h or a > h for (a, b), h in zip(sides, half, strict=True)):
        return None
    stride: Any = settings.get("stride", 1)
    strides = tuple(stride) if isinstance(stride, Sequence) else (stride,) * dims
    kept = (slice(h - a, None, s) for (a, _), h, s in zip(sides, half, strides, strict=True))
    return Centring(half, (slice(None), slice(None), *kept))
