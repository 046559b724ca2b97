"""Depthwise convolutions in one and two dimensions as ones that fbgemm has a kernel of its own for, on CPUs without VNNI.

That kernel takes square windows of 3, 5 or 7, centred padding, no dilation and a multiple of 8 channels; what is around it crawls, and no
other library packs convolutions there. A dilation is a batch: every d-th row and column is an image. A window is part of a larger one of
zeros, channels are filled up, and of a centred result with stride 1 the values are kept that are meant. Microseconds on an AMD EPYC
(Zen 3), of merged groups (groups.py), of this, of float: 128 channels at 28 x 28, 5 x 5, dilation 2 3285, 340, 534; 3 x 3, dilation 2 1174,
343, 297; 256 channels at 32 x 32, 3 x 3, dilation 4 3734, 587, 743; 58 channels at 28 x 28, 3 x 3 668, 176, 211; 96 channels at 30 x 30
without padding 749, 200, 267. A row of steps is an image of one row, of which the kernel leaves out the taps above and below: 256
channels at 512 steps, 3, 5, 7 taps (Zen 5 with AVX2 alone) 246, 428, 520 merged, 54, 82, 124 so, 103 to 120 in float.

With VNNI fbgemm's kernel needs a proof of its 16-bit sums (depthwise.py), which is about the convolution as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from qcompiler.backends.torch.kernels.rows import note_rows
from qcompiler.backends.torch.runtime import channels, packs
from qcompiler.backends.torch.site import Emit, Site, ints

WINDOWS = (3, 5, 7)
SETTINGS = (("stride", 1), ("padding", 0), ("dilation", 1))
LANE = 8  # channels
WASTE = 3  # times as many taps as the window has cost more than they gain
FEW = 16  # channels, below which merged groups are one small group


@dataclass(frozen=True)
class AsDepthwise:
    """How a convolution of (N, C, H, W), or of (N, C, L) as (N, C, 1, L), lies in one of a `window` square with `channels` in groups of
    their own, per dimension.

    `front` and `back`: zeros around the input. `stride`: the kernel's. Of its results, at the places of the dilation, every `kept`-th
    from `first` on is meant, (size + span) // (stride * kept) + 1 of them.
    """

    channels: int
    outputs: int
    window: int
    dilation: list[int]
    front: list[int]
    back: list[int]
    stride: list[int]
    first: list[int]
    kept: list[int]
    span: list[int]

    @property
    def prepares(self) -> bool:
        """Whether the input is changed; `channels` apart."""
        return any(d > 1 for d in self.dilation) or any(self.front) or any(self.back)

    @property
    def selects(self) -> bool:
        """Whether the result is more than what is meant; `channels` apart."""
        whole = all(a + b == n + 1 for a, b, n in zip(self.front, self.back, self.span, strict=True))
        return any(d > 1 for d in self.dilation) or any(self.first) or any(k > 1 for k in self.kept) or not whole


def as_depthwise(shape: tuple[int, ...], attributes: Mapping[str, Any], strides: bool) -> AsDepthwise | None:
    """The form of a convolution with the weight (O, I/g, *kernel); None where it has none that pays. `strides`: whether the kernel may
    have a stride of 2."""
    groups, dims = attributes.get("groups", 1), len(shape) - 2
    if dims > 2 or shape[1] != 1 or groups < FEW or shape[0] not in (groups, 2 * groups):
        return None
    kernel = (*[1] * (2 - dims), *shape[2:])
    window = next((k for k in WINDOWS if k >= max(kernel)), None)
    if window is None or (dims == 2 and window**2 > WASTE * math.prod(kernel)):
        return None
    given = (ints(attributes.get(name, default), dims) for name, default in SETTINGS)
    stride, padding, dilation = ([*[own] * (2 - dims), *values] for values, (_, own) in zip(given, SETTINGS, strict=True))
    half, before = (window - 1) // 2, [(window - k) // 2 for k in kernel]  # zeros in front of the taps
    shift = [(half - b) * d - p for b, d, p in zip(before, dilation, padding, strict=True)]
    span = [2 * p - d * (k - 1) - 1 for p, d, k in zip(padding, dilation, kernel, strict=True)]
    front, first = [max(-s, 0) for s in shift], [max(s, 0) for s in shift]
    back = [max(n + 1 + s, 0) for n, s in zip(span, shift, strict=True)]
    inside = strides and stride == [2, 2] and dilation == [1, 1] and not any(first)
    channels = -(-groups // LANE) * LANE
    kept, own = ([1, 1], stride) if inside else (stride, [1, 1])
    return AsDepthwise(channels, channels * (shape[0] // groups), window, dilation, front, back, own, first, kept, span)


@dataclass(frozen=True)
class ConvParts:
    """What a convolution is made of beside its weight: an input that the window fits into, the axis of the scales, the tag of its pack."""

    source: Any
    bias: fx.Node | None
    axis: int
    tag: str
    relu: bool


def emit_as_depthwise(site: Site, emit: Emit, form: AsDepthwise, parts: ConvParts) -> fx.Node:
    """prepack (once), and quantized::conv2d between the changes that the form asks for."""
    weight, bias, outputs, flat = site.args[1], parts.bias, form.outputs, len(site.args[1].shape) == 3
    x = emit.call(torch.ops.aten.unsqueeze.default, parts.source, 2) if flat else parts.source
    values = emit.call(channels.larger_window, weight.node, weight.zero_point, outputs, form.window)
    scale, zero_point = weight.scale, weight.zero_point
    filled = outputs > weight.shape[0]
    if filled and parts.axis >= 0:
        scale, zero_point = (emit.call(channels.more_channels, t, outputs, v) for t, v in ((scale, 1.0), (zero_point, 0.0)))
    if filled and bias is not None:
        bias = emit.call(channels.more_channels, bias, outputs, 0.0)
    padding = [(form.window - 1) // 2] * 2
    settings = (form.stride, padding, [1, 1], form.channels, parts.axis, parts.tag)
    pack = emit.call(packs.prepack_conv2d, values, scale, zero_point, bias, *settings)
    given = emit.call(channels.split_dilation, x, form.channels, form.front, form.back, form.dilation) if filled or form.prepares else x
    kernel = torch.ops.quantized.conv2d_relu.new if parts.relu else torch.ops.quantized.conv2d.new
    result = emit.call(kernel, given, pack, site.scale, site.zero_point)
    if filled or form.selects:
        where = (form.dilation, form.first, form.stride, form.kept, form.span)
        result = emit.call(channels.join_dilation, result, x, weight.shape[0], *where)
    if flat:
        result = emit.call(torch.ops.aten.squeeze.dim, result, 2)
        note_rows(result, True)
    return result
