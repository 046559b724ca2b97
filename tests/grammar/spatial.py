"""Steps on (N, C, *sizes): convolutions and what stands around them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.grammar.network import MAX_VALUES, Draw, Made, apply, rule, spatial


@rule(8)
def conv(draw: Draw, x: Tensor) -> Made | None:
    rank = spatial(x)
    if not rank:
        return None
    channels, rng = x.shape[1], draw.rng
    groups = rng.choice([g for g in (1, 1, 1, 2, 3, 4, channels) if channels % g == 0])
    out = groups * rng.choice((1, 2, 3, 4)) if groups > 1 else rng.choice((1, 3, 4, 8, 16))
    kernel, dilation = [rng.choice((1, 1, 2, 3, 3, 5)) for _ in range(rank)], rng.choice((1, 1, 1, 2))
    stride, mode = [rng.choice((1, 1, 2)) for _ in range(rank)], rng.choice(("zeros", "zeros", "zeros", "circular", "replicate"))
    padding = [rng.choice((0, k // 2, dilation * (k - 1) // 2)) for k in kernel]
    if any(size + 2 * p - dilation * (k - 1) < 1 or p > size for size, p, k in zip(x.shape[2:], padding, kernel)):
        return None
    cls = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    made = cls(channels, out, kernel, stride, padding, dilation, groups, bias=rng.random() < 0.7, padding_mode=mode)  # type: ignore[arg-type]
    extra: list[nn.Module] = []
    if rng.random() < 0.5:
        extra.append((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1](out))
    if rng.random() < 0.5:
        extra.append(rng.choice((nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardtanh(), nn.SiLU(), nn.Hardswish(), nn.PReLU(out))))
    return (nn.Sequential(made, *extra) if extra else made), apply


@rule(2)
def transposed(draw: Draw, x: Tensor) -> Made | None:
    rank = spatial(x)
    if not rank or x.numel() * 4 > MAX_VALUES:
        return None
    cls, rng = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1], draw.rng
    groups = rng.choice([g for g in (1, 1, 2) if x.shape[1] % g == 0])
    stride = rng.choice((1, 2))
    kernel = rng.choice((1, 2, 3, 4))
    return cls(x.shape[1], groups * rng.choice((1, 2, 4)), kernel, stride, rng.choice((0, 1)) if kernel > 2 else 0, groups=groups,
               output_padding=rng.choice((0, 1)) if stride == 2 else 0, dilation=rng.choice((1, 1, 1, 2)),
               bias=rng.random() < 0.7), apply  # fmt: skip


@rule(2)
def functional_conv(draw: Draw, x: Tensor) -> Made | None:
    rank = spatial(x)
    if not rank:
        return None
    function: Any = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, x.shape[1], *[3] * rank) / 5)

    return Part(), lambda part, v: function(v, part.w, padding="same")


@rule(2)
def pool(draw: Draw, x: Tensor) -> Made | None:
    rank, rng = spatial(x), draw.rng
    if not rank or min(x.shape[2:]) < 2:
        return None
    kind = rng.choice(("max", "avg", "adaptive", "adaptive_max"))
    if kind.startswith("adaptive"):
        average: Any = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[rank - 1]
        largest: Any = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)[rank - 1]
        return (largest if kind == "adaptive_max" else average)(rng.choice((1, 2, 3))), apply
    size, stride = rng.choice((2, 3 if min(x.shape[2:]) > 2 else 2)), rng.choice((1, 2))
    if kind == "max":
        biggest: Any = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[rank - 1]
        return biggest(size, stride, rng.choice((0, size // 2)), ceil_mode=rng.random() < 0.3), apply
    mean: Any = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[rank - 1]
    return mean(size, stride, rng.choice((0, size // 2)), count_include_pad=rng.random() < 0.5), apply


@rule(2)
def resize(draw: Draw, x: Tensor) -> Made | None:
    rank = spatial(x)
    if not rank or x.numel() * 2**rank > MAX_VALUES:
        return None
    smooth = {1: "linear", 2: "bilinear", 3: "trilinear"}[rank]
    mode = draw.pick("nearest", "nearest", smooth)
    factor = draw.pick(2, 2, 0.5 if min(x.shape[2:]) > 1 else 2)
    return None, lambda v: F.interpolate(v, scale_factor=factor, mode=mode)


@rule(1)
def pad(draw: Draw, x: Tensor) -> Made | None:
    rank = spatial(x)
    if not rank or min(x.shape[2:]) < 2:
        return None
    sizes, value = [draw.pick(0, 1) for _ in range(2 * rank)], draw.pick(0.0, 0.5)
    mode = draw.pick("constant", "constant", "reflect", "replicate")
    return None, lambda v: F.pad(v, sizes, mode=mode, value=value) if mode == "constant" else F.pad(v, sizes, mode=mode)


@rule(1)
def gate(draw: Draw, x: Tensor) -> Made | None:
    rank = spatial(x)
    if not rank:
        return None
    cls: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    act = draw.pick(torch.sigmoid, F.hardsigmoid, torch.tanh)
    dims = list(range(2, x.dim()))
    return cls(x.shape[1], x.shape[1], 1), lambda part, v: v * act(part(v.mean(dims, keepdim=True)))


@rule(1)
def norm_of_channels(draw: Draw, x: Tensor) -> Made | None:
    rank, rng = spatial(x), draw.rng
    if not rank or x[0, 0].numel() < 2:
        return None
    batch: Any = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
    instance: Any = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[rank - 1]
    groups = rng.choice([g for g in (1, 2, 4) if x.shape[1] % g == 0])
    return rng.choice((batch(x.shape[1]), nn.GroupNorm(groups, x.shape[1]), instance(x.shape[1], affine=True))), apply


@rule(1)
def shuffle(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() != 4 or x.shape[1] % 4:
        return None
    if draw.rng.random() < 0.5:
        return None, lambda v: F.pixel_shuffle(v, 2)
    return None, lambda v: v.view(v.size(0), 2, v.size(1) // 2, v.size(2), v.size(3)).transpose(1, 2).reshape(v.shape)


@rule(2)
def to_sequence(draw: Draw, x: Tensor) -> Made | None:
    return (None, lambda v: v.flatten(2).transpose(1, 2)) if spatial(x) else None
