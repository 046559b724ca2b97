"""What qconfigs say of weights: an axis that is given has to exist (each op knows its own), and a weight has one observer.

And the scales of windows of few weights, which that observer alone does not settle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qcompiler.errors import ConfigError, Where
from qcompiler.ir.types import QParams

_LARGER = 1 + torch.arange(16, dtype=torch.float64) / 128  # what a scale is multiplied by: other roundings of all weights of a window
_FEW = 128  # weights of a window up to which it pays: errors of more weights than that differ little from scale to scale


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
    """The scales of a depthwise weight: of each channel the best of what the largest weight gives, w / 127.5 and w / 127, and of 16 from
    the one on that puts it on -128 or 127.

    At w / 127.5, the min-max observer's, the largest lies halfway between two integers, so it has the largest error: of one weight in nine
    that is much. Best is what makes the least error of the results on windows of neighbours that are alike (`_likeness`). Scales that are
    not the min-max observer's, for -128 to 127, stay.
    """
    p = qparams
    if p.channel_axis is None or p.dtype is not torch.int8 or (p.quant_min, p.quant_max) != (-128, 127) or _is_wide(weight):
        return p
    rows = weight.detach().float().transpose(0, p.channel_axis).flatten(1)
    low, high = -rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    largest, given = torch.maximum(low, high), torch.tensor(p.scale)
    plain = (given == largest / 127.5) & (torch.tensor(p.zero_point) == 0)
    scales = torch.stack([given, largest / 127, *(torch.maximum(low / 128, high / 127) * _LARGER.float()[:, None])])
    scales = torch.where(plain, scales, given)
    found = _errors(rows, scales, weight.shape[2:]).argmin(0, keepdim=True)
    return replace(p, scale=tuple(scales.gather(0, found)[0].tolist()))


def of_few_held(weight: Tensor, safe: Tensor, wanted: Tensor, axis: int, holds: Callable[[Tensor], Tensor]) -> Tensor:
    """The scales of a depthwise weight that a kernel's sums hold: where `safe` had to be larger than what was wanted, the best of 16 from
    there on, by `of_few`'s measure. `holds`: of codes, by channel, whether the sums hold them."""
    if safe.numel() != weight.shape[axis] or _is_wide(weight) or torch.equal(safe, wanted):
        return safe
    larger = safe != wanted
    turned, scales = weight.detach().transpose(0, axis)[larger], safe[larger].double() * _LARGER[:, None]
    rows = turned.float().flatten(1)

    def fit(codes: Tensor) -> Tensor:
        return holds(codes.reshape(turned.shape).transpose(0, axis).to(torch.int8))

    errors = _errors(rows, scales.float(), weight.shape[2:], fit)
    best = scales.gather(0, errors.argmin(0, keepdim=True))[0].to(safe.dtype)
    return safe.masked_scatter(larger, torch.where(errors.isfinite().any(0), best, safe[larger]))


def _is_wide(weight: Tensor) -> bool:
    return math.prod(weight.shape[2:]) > _FEW


def _errors(rows: Tensor, scales: Tensor, window: Sequence[int], holds: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """(scales, channels): what results lose by rounding as `quantize_weight` does, in parts of a mean square of what a window holds; inf
    where the codes are not held."""
    alike, found = _likeness(window), []
    for scale in scales:
        codes = torch.round(rows * scale.reciprocal()[:, None]).clamp_(-128, 127)
        fit = None if holds is None else holds(codes)
        lost = codes.mul_(scale[:, None]).sub_(rows)
        error = (lost @ alike).mul_(lost).sum(1)
        found.append(error if fit is None else error.masked_fill_(~fit, math.inf))
    return torch.stack(found)


def _likeness(window: Sequence[int]) -> Tensor:
    """The second moments of what stands at the places of a window, with ones on the diagonal: 0.8 + 0.2 exp(-distance / 2).

    Inputs of depthwise layers have no sign and are alike at neighbouring places, so that errors of a sign add up: of those of
    EfficientNet-Lite0 on photos neighbours have 0.4 to 0.95.
    """
    places = torch.cartesian_prod(*(torch.arange(float(size)) for size in window)).reshape(-1, len(window))
    return 0.8 + 0.2 * torch.exp((places[:, None] - places[None]).square().sum(2).sqrt() / -2)


def take_axis(observer: Any, axis: int, weight: Tensor, where: Where | None = None) -> None:
    """Observes along `axis`, the op's; ConfigError where the one that was given cannot be meant for this weight."""
    check_axis(observer, weight, where)
    observer.ch_axis = axis
