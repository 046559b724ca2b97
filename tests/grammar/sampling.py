"""Pools, resizes and windows in their other forms: dilated, with divisors and places, cubic, by grids, folded back."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.grammar.network import MAX_VALUES, Draw, Made, rule, spatial


@rule(2)
def other_pools(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() != 4 or min(x.shape[2:]) < 4:
        return None

    def unpooled(v: Tensor) -> Tensor:
        y, places = F.max_pool2d(v, 2, return_indices=True)
        return F.max_unpool2d(y, places, 2, output_size=list(v.shape[2:])) + v

    return None, draw.pick(
        lambda v: F.max_pool2d(v, 2, 1, dilation=2), lambda v: F.avg_pool2d(v, 2, divisor_override=3),
        lambda v: F.max_pool2d(v, (1, 3), (2, 1)),
        lambda v: F.avg_pool2d(v, 3, 2, 1, ceil_mode=True, count_include_pad=False), lambda v: F.lp_pool2d(v, 2.0, 2), unpooled,
        lambda v: F.adaptive_avg_pool2d(v, (None, 2)), lambda v: F.adaptive_max_pool2d(v, (1, None)),
        lambda v: F.max_pool2d(v, 3, 3, 1, ceil_mode=True),
        lambda v: -F.max_pool2d(-v, 2), lambda v: F.max_pool2d(v, 2)[..., :1] + F.avg_pool2d(v, 2)[..., :1],
    )  # fmt: skip


@rule(2)
def other_resizes(draw: Draw, x: Tensor) -> Made | None:
    rank = spatial(x)
    if not rank or x.numel() * 2**rank > MAX_VALUES:
        return None
    smooth: Any = ("linear", "bilinear", "trilinear")[rank - 1]
    made: list[Any] = [
        lambda v: F.interpolate(v, scale_factor=2, mode="nearest-exact"),
        lambda v: F.interpolate(v, scale_factor=2, mode=smooth, align_corners=True),
        lambda v: F.interpolate(v, scale_factor=1.5),
        lambda v: F.interpolate(v, scale_factor=0.5, recompute_scale_factor=True, mode=smooth),
        lambda v: F.interpolate(v, size=v.shape[2:], mode=smooth),
        lambda v: F.interpolate(v, size=[s + 1 for s in v.shape[2:]], mode="area"),
        lambda v: F.interpolate(v, size=[max(1, s // 2) for s in v.shape[2:]], mode="area"),
    ]  # fmt: skip
    if rank == 2:
        made += [
            lambda v: F.interpolate(v, scale_factor=2, mode="bicubic"),
            lambda v: F.interpolate(v, scale_factor=0.5, mode="bilinear", antialias=True),
            lambda v: F.interpolate(v, size=(v.size(2) + 1, v.size(3)), mode="bicubic", align_corners=True),
        ]  # fmt: skip
    if min(x.shape[2:]) < 2:
        made = made[:1]
    return None, draw.rng.choice(made)


@rule(1)
def by_grid(draw: Draw, x: Tensor) -> Made | None:
    """Values at places between pixels: moved by a number, or by what the network computes."""
    if x.dim() != 4 or min(x.shape[2:]) < 2:
        return None
    mode, padding, corners = draw.pick("bilinear", "nearest"), draw.pick("zeros", "border", "reflection"), draw.pick(True, False)

    def sampled(v: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(v, grid, mode=mode, padding_mode=padding, align_corners=corners)

    def turned(v: Tensor) -> Tensor:
        theta = torch.tensor([[[0.9, 0.2, 0.1], [-0.2, 0.8, 0.0]]]).expand(v.size(0), -1, -1)
        return sampled(v, F.affine_grid(theta, list(v.shape), align_corners=corners))

    def bent(v: Tensor) -> Tensor:
        rows, columns = torch.linspace(-0.9, 0.9, v.size(2)), torch.linspace(-0.9, 0.9, v.size(3))
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1)
        shift = 0.1 * v.mean(1).tanh()[..., None]
        return sampled(v, grid + shift) if mode == "bilinear" else sampled(v, grid.expand(v.size(0), -1, -1, -1))

    return None, draw.pick(turned, bent)


@rule(2)
def other_moves(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() != 4 or min(x.shape[2:]) < 2:
        return None
    made: list[Any] = [
        lambda v: v.unfold(2, 2, 1).mean(-1), lambda v: v.unfold(3, 2, 2).flatten(3), lambda v: v.movedim(1, -1).relu().movedim(-1, 1),
        lambda v: v.rot90(1, (2, 3)), lambda v: v.diagonal(0, 2, 3), lambda v: v.diagonal(1, 2, 3) * 2, lambda v: v.roll((1, -1), (2, 3)),
        lambda v: F.fold(F.unfold(v, 3, padding=1), v.shape[2:], 3, padding=1) / 9, lambda v: F.pad(v, (1, 2, 0, 0), mode="circular"),
        lambda v: v.swapaxes(2, 3).contiguous().view(v.size(0), -1, v.size(2)), lambda v: v.flip((2, 3)) + v,
        lambda v: v.tril(1) + v.triu(2),
        lambda v: F.pad(v, (-1, 0, 0, -1)), lambda v: F.pad(v, (1, -1, 0, 0), value=-0.25), lambda v: v.repeat_interleave(2, 2),
        lambda v: v.view(v.size(0), v.size(1), -1).softmax(-1).view_as(v), lambda v: torch.cat(v.tensor_split((1,), 3)[::-1], 3),
    ]  # fmt: skip
    if x.shape[1] % 2 == 0:
        made += [lambda v: F.channel_shuffle(v, 2), lambda v: torch.cat([v[:, ::2], v[:, 1::2]], 1)]
    return None, draw.rng.choice(made)
