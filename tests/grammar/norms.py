"""Normalizations: over several dimensions, without weights, of small values, by other statistics."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.grammar.features import wide
from tests.grammar.network import Draw, Made, apply, rule, spatial


@rule(2)
def norm_of_rows(draw: Draw, x: Tensor) -> Made | None:
    """Over the last dimension or the last two, of values that may be small beside an eps."""
    last = draw.pick(1, 1, 2)
    shape = tuple(x.shape[-last:])
    if x.dim() <= last or x[0].numel() == 1 or len(shape) != last or torch.Size(shape).numel() < 3:
        return None
    small = draw.pick(1.0, 1.0, 1e-2, 1e-3)
    made = draw.pick(
        lambda: nn.LayerNorm(shape, elementwise_affine=False), lambda: nn.LayerNorm(shape, eps=1e-3), lambda: nn.RMSNorm(shape),
        lambda: nn.RMSNorm(shape, eps=1e-4), lambda: nn.RMSNorm(shape, elementwise_affine=False), lambda: nn.LayerNorm(shape, bias=False),
    )()  # fmt: skip
    return made, lambda part, v: part(v * small) + 0.1 * v


@rule(2)
def norm_of_groups(draw: Draw, x: Tensor) -> Made | None:
    rank, channels = spatial(x), x.shape[1]
    if not rank or x[0, 0].numel() < 2:
        return None
    instance: Any = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[rank - 1]
    groups = draw.rng.choice([g for g in (1, 2, 4, channels) if channels % g == 0])
    small = draw.pick(1.0, 1.0, 1e-2)
    made = draw.pick(
        lambda: nn.GroupNorm(groups, channels, affine=False), lambda: nn.GroupNorm(groups, channels, eps=1e-3), lambda: instance(channels),
        lambda: instance(channels, affine=True, eps=1e-3), lambda: instance(channels, track_running_stats=True),
    )()  # fmt: skip
    return made, lambda part, v: part(v * small) + 0.1 * v


@rule(2)
def norm_by_hand(draw: Draw, x: Tensor) -> Made | None:
    rank, dims = spatial(x), tuple(range(2, x.dim()))
    if x[0].numel() < 4 or x.shape[1] < 2:
        return None

    def of_responses(v: Tensor) -> Tensor:  # ConvNeXt-V2's
        size = v.norm(p=2, dim=dims, keepdim=True)
        return v + v * (size / (size.mean(1, keepdim=True) + 1e-6))

    made: list[Any] = [
        lambda v: F.normalize(v, dim=1), lambda v: F.normalize(v, p=1.0, dim=1), lambda v: v / (v.abs().mean(1, keepdim=True) + 0.1),
        lambda v: (v - v.mean()) / (v.std() + 0.1), lambda v: v / v.abs().amax(1, keepdim=True).clamp(min=0.1),
        lambda v: v * torch.rsqrt(v.square().mean(1, keepdim=True) + 1e-3),
        lambda v: F.layer_norm(v.movedim(1, -1), (v.size(1),)).movedim(-1, 1),
        lambda v: F.rms_norm(v.transpose(1, -1), (v.size(1),)).transpose(1, -1),
    ]  # fmt: skip
    return None, draw.rng.choice([*made, of_responses] if rank else made)


@rule(1)
def frozen_norm(draw: Draw, x: Tensor) -> Made | None:
    """A BatchNorm of buffers, as detectors have it."""
    channels, shape = x.shape[1], (1, x.shape[1], *[1] * (x.dim() - 2))

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("weight", "bias", "mean", "var"):
                self.register_buffer(name, torch.rand(channels) + 0.5)

        def forward(self, v: Any) -> Any:
            scale = self.weight * (self.var + 1e-5).rsqrt()
            return v * scale.reshape(shape) + (self.bias - self.mean * scale).reshape(shape)

    return Part(), draw.pick(apply, lambda part, v: F.batch_norm(v, part.mean, part.var, part.weight, part.bias))


@rule(1)
def standardized(draw: Draw, x: Tensor) -> Made | None:
    """A convolution or linear whose weight is normalized at each call."""
    rank = spatial(x)
    if rank:
        function: Any = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
        made: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](x.shape[1], 4, 3)

        def conv(part: Any, v: Tensor) -> Tensor:
            w = part.weight
            w = (w - w.mean((1, *range(2, w.dim())), keepdim=True)) / (w.std((1, *range(2, w.dim())), keepdim=True) + 1e-3)
            return function(v, w, part.bias, padding=1)  # type: ignore[no-any-return]

        return made, conv
    if not wide(x):
        return None
    return nn.Linear(x.shape[-1], 4), lambda part, v: F.linear(v, F.normalize(part.weight, dim=-1), part.bias)
