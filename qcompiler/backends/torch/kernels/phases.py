"""How a transposed convolution is a plain one: the geometry of its phases.

With stride s, output element s * q + r - p takes the taps r, r + s, r + 2 s, ... of the kernel: phase r is a stride-1 convolution
with ceil(k / s) taps, in the opposite order. All phases are one convolution with s times the output channels, whose results are
interleaved and cut to size (Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qcompiler.backends.torch.site import ints


@dataclass(frozen=True)
class Phases:
    """A transposed convolution as a plain one with stride 1.

    `shape`: its weight's, with the phases of each group's channels in the order (group, phase, channel). `first`, `last`: what is cut
    off the interleaved result, per dimension.
    """

    shape: tuple[int, ...]
    stride: list[int]  # of the phases, not of the convolution
    padding: list[int]
    dilation: list[int]
    groups: int
    first: list[int]
    last: list[int]

    @property
    def count(self) -> int:
        return math.prod(self.stride)

    @property
    def attributes(self) -> dict[str, Any]:
        """Of the plain convolution."""
        return {"padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    @staticmethod
    def of(shape: tuple[int, ...], attributes: Mapping[str, Any]) -> Phases | None:
        """From a transposed convolution's weight (I, O/g, *kernel); None where a dimension has both a stride and a dilation.

        Along one dimension: with reach = dilation * (taps - 1) of the phases' convolution, an input of n and padding P on both sides,
        each phase has n + 2 P - reach elements; they must begin at element p // s and reach the end of the n s-strided output.
        """
        kernel = shape[2:]
        dims, groups = len(kernel), attributes.get("groups", 1)
        names = (("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1))
        stride, cut, extra, dilation = (ints(attributes.get(name, default), dims) for name, default in names)
        if any(s > 1 and d > 1 for s, d in zip(stride, dilation)):
            return None
        taps = [math.ceil(k / s) for k, s in zip(kernel, stride)]
        padding, first, last = [], [], []
        for k, s, p, more, d, t in zip(kernel, stride, cut, extra, dilation, taps):
            reach, size = d * (t - 1), d * (k - 1) + 1 + more - s - 2 * p  # the output has s * n + size elements
            before = reach - p // s
            after = math.ceil((p % s + size) / s) - before + reach
            padding.append(max(before, after, 0))
            first.append(s * (padding[-1] - before) + p % s)
            last.append(s * (2 * padding[-1] - reach) - first[-1] - size)
        wide = (shape[1] * groups * math.prod(stride), shape[0] // groups, *taps)
        return Phases(wide, stride, padding, dilation, groups, first, last)
