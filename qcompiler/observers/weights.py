"""What qconfigs say of weights: an axis that is given has to exist (each op knows its own), and a weight has one observer.

And the scales of windows of few weights, which that observer alone does not settle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qcompiler.errors import ConfigError, Where
from qcompiler.ir.types import QParams


def check_axis(observer: object, weight: Tensor, where: Where | None = None) -> None:
    """ConfigError for a `ch_axis` that the weight does not have."""
    axis = getattr(observer, "ch_axis", -1) if getattr(observer, "is_per_channel", False) else -1
    if weight.dim() and not -weight.dim() <= axis < weight.dim():
        raise ConfigError(f"the qconfig's weight observer has ch_axis={axis}, out of range for a weight of shape {tuple(weight.shape)}",
                          code="channel-axis", where=where, hint="leave ch_axis out: each op knows the axis of its channels")  # fmt: skip


def check_tied(name: str, users: tuple[str, str], makers: tuple[object, object]) -> None:
    """ConfigError, naming both, where two users of one weight would observe it in different ways."""
    if makers[0] != makers[1]:
        text = f"the weight {name} has two users, {users[0]} and {users[1]}, with different qconfigs"
        raise ConfigError(text, code="tied-weight", where=Where(module_path=name),
                          hint="give both the same weight observer, or each a weight of its own: nn.Parameter(weight.clone())")  # fmt: skip


def of_few(weight: Tensor, qparams: QParams) -> QParams:
    """The scales of a depthwise weight: of each channel the best of three that the largest weight gives, w / 127.5, w / 127 and what puts
    it on -128 or 127.

    At w / 127.5, the min-max observer's, the largest lies halfway between two integers, so it has the largest error: of one weight in nine
    that is much. Best is the least sum of e ** 2 + (sum of e) ** 2, e being the errors of a channel: what it multiplies are neighbours,
    which are much alike. Scales that are not the min-max observer's, for -128 to 127, stay.
    """
    p = qparams
    if p.channel_axis is None or p.dtype is not torch.int8 or (p.quant_min, p.quant_max) != (-128, 127):
        return p
    rows = weight.detach().float().transpose(0, p.channel_axis).flatten(1)
    low, high = -rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    largest, given = torch.maximum(low, high), torch.tensor(p.scale)
    plain = (given == largest / 127.5) & (torch.tensor(p.zero_point) == 0)
    scales = torch.stack([given, largest / 127, torch.maximum(low / 128, high / 127)])
    scales = torch.where(plain, scales, given)
    errors = torch.round(rows * scales.reciprocal()[..., None]).clamp(-128, 127) * scales[..., None] - rows
    found = (errors.square().sum(2) + errors.sum(2).square()).argmin(0, keepdim=True)
    return replace(p, scale=tuple(scales.gather(0, found)[0].tolist()))


def of_few_held(weight: Tensor, safe: Tensor, wanted: Tensor, axis: int, holds: Callable[[Tensor], Tensor]) -> Tensor:
    """The scales of a depthwise weight that a kernel's sums hold: where `safe` had to be larger than what was wanted, the best of eight
    from there on, in steps of 1/64, by `of_few`'s measure. `holds`: of codes, by channel, whether the sums hold them."""
    if safe.numel() != weight.shape[axis]:
        return safe
    rows = weight.detach().double().transpose(0, axis).flatten(1)
    scales = safe.double() * (1 + torch.arange(8, dtype=torch.float64) / 64)[:, None]
    codes = torch.round(rows / scales[..., None]).clamp(-128, 127)
    errors = codes * scales[..., None] - rows
    fit = torch.stack([holds(made.reshape(weight.transpose(0, axis).shape).transpose(0, axis).to(torch.int8)) for made in codes])
    measure = (errors.square().sum(2) + errors.sum(2).square()).masked_fill(~fit, math.inf)
    best = scales.gather(0, measure.argmin(0, keepdim=True))[0].to(safe.dtype)
    return torch.where((safe != wanted) & fit.any(0), best, safe)


def take_axis(observer: Any, axis: int, weight: Tensor, where: Where | None = None) -> None:
    """Observes along `axis`, the op's; ConfigError where the one that was given cannot be meant for this weight."""
    check_axis(observer, weight, where)
    observer.ch_axis = axis
