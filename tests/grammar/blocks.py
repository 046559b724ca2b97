"""Blocks of networks: residuals, other normalizations, parametrized weights, forms of padding and resizing as modules."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.grammar.features import wide
from tests.grammar.network import MAX_VALUES, Draw, Made, apply, rule, spatial

CONV: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORM: tuple[Any, ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@rule(4)
def block(draw: Draw, x: Tensor) -> Made | None:
    """Two convolutions around which the value goes, with what usual networks have between them."""
    rank = spatial(x)
    if not rank:
        return None
    conv, norm, channels = CONV[rank - 1], BATCH_NORM[rank - 1], x.shape[1]
    inner = draw.pick(channels, 2 * channels, 8)
    groups = inner if draw.rng.random() < 0.4 else 1
    act: Any = draw.pick(nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU)
    size = draw.pick(1, 3)
    part = nn.Sequential(conv(channels, inner, 1, bias=False), norm(inner), act(), conv(inner, inner, size, padding="same", groups=groups),
                         norm(inner), act(), conv(inner, channels, 1, bias=False), norm(channels))  # fmt: skip
    return part, draw.pick(lambda part, v: part(v) + v, lambda part, v: F.relu(v + part(v)), lambda part, v: torch.cat([part(v), v], 1))


@rule(2)
def other_norms(draw: Draw, x: Tensor) -> Made | None:
    rank, channels = spatial(x), x.shape[1]
    made: list[Any] = [lambda: (None, lambda v: F.normalize(v, dim=-1)), lambda: (None, lambda v: v / (v.norm(dim=1, keepdim=True) + 1))]
    if wide(x):
        made.append(lambda: (nn.RMSNorm(x.shape[-1]), apply))
    if rank:
        plain = BATCH_NORM[rank - 1](channels, affine=False)
        made += [lambda: (nn.LocalResponseNorm(3), apply), lambda: (nn.Sequential(plain, nn.ReLU()), apply),
                 lambda: (None, lambda v: (v - v.mean(1, keepdim=True)) / (v.var(1, keepdim=True, correction=0) + 0.1).sqrt())]  # fmt: skip
        if x[0].numel() > 1:
            made.append(lambda: (nn.GroupNorm(1, channels), apply))
    found: Made = draw.rng.choice(made)()
    return found


@rule(1)
def parametrized(draw: Draw, x: Tensor) -> Made | None:
    """Weights that are computed from others."""
    rank, wrap = spatial(x), draw.pick(parametrizations.weight_norm, parametrizations.spectral_norm)
    if rank and x.shape[1] > 1:
        return wrap(CONV[rank - 1](x.shape[1], 4, 1)), apply
    return (wrap(nn.Linear(x.shape[-1], 6)), apply) if wide(x) else None


@rule(1)
def padded(draw: Draw, x: Tensor) -> Made | None:
    """Convolutions with padding that is uneven, reflected or a module of its own."""
    rank = spatial(x)
    if not rank or min(x.shape[2:]) < 3:
        return None
    conv, channels = CONV[rank - 1], x.shape[1]
    uneven = [draw.pick(0, 1, 2) for _ in range(2 * rank)]
    if draw.rng.random() < 0.5:
        return conv(channels, 4, 3, draw.pick(1, 2)), lambda part, v: part(F.pad(v, uneven))
    reflected: Any = (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)[rank - 1]
    return nn.Sequential(reflected(1), conv(channels, channels, 3, groups=draw.pick(1, channels)), nn.Tanh()), apply


@rule(1)
def upsampled(draw: Draw, x: Tensor) -> Made | None:
    rank = spatial(x)
    if rank != 2 or x.numel() * 4 > MAX_VALUES:
        return None
    resized = draw.pick(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.UpsamplingNearest2d(scale_factor=2))
    return nn.Sequential(resized, nn.Conv2d(x.shape[1], 4, 3, padding=1)), apply


@rule(1)
def gated(draw: Draw, x: Tensor) -> Made | None:
    """One layer whose result is cut in a value and its gate."""
    rank, form = spatial(x), draw.pick(torch.sigmoid, torch.tanh, F.silu)

    def split(part: nn.Module, v: Tensor) -> Tensor:
        value, gate = part(v).chunk(2, 1 if rank else -1)
        return value * form(gate)

    if rank:
        return CONV[rank - 1](x.shape[1], 2 * x.shape[1], 1), split
    return (nn.Linear(x.shape[-1], 2 * x.shape[-1]), split) if x.dim() == 2 and wide(x) else None


@rule(1)
def head(draw: Draw, x: Tensor) -> Made | None:
    """A classifier's end: pooled, flattened, a dropout, linears, probabilities."""
    rank = spatial(x)
    if not rank:
        return None
    pool: Any = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[rank - 1]
    end = draw.pick(nn.Softmax(-1), nn.LogSoftmax(-1), nn.Sigmoid(), nn.Identity())
    return nn.Sequential(pool(1), nn.Flatten(), nn.Linear(x.shape[1], 8), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(8, 5), end), apply


@rule(1)
def regrouped(draw: Draw, x: Tensor) -> Made | None:
    """The last dimension as two, and a layer on each of its rows."""
    width = x.shape[-1]
    if x.dim() > 3 or width % 2 or not 4 <= width <= 32:
        return None
    return nn.Sequential(nn.Unflatten(-1, (2, width // 2)), nn.Linear(width // 2, 4)), draw.pick(
        lambda part, v: part(v).flatten(-2), lambda part, v: part(torch.tanh(v)).mean(-2), lambda part, v: part(v.relu()).select(-2, 0)
    )
