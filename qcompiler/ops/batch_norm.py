"""batch_norm behind a convolution or a linear as part of its weight and bias.

batch_norm(conv(x)) = conv'(x) with  s = gamma / sqrt(var + eps);  W' = W * s along the output channels;  b' = (b - mean) * s + beta.
W is (O, I/g, k...) for conv and linear, (I, O/g, k...) for a transposed convolution, where output channel c of group j stands
at [:, c] of the j-th block of I/g rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.errors import NumericsError, Where


class Norm(NamedTuple):
    """What a batch norm computes with: running statistics, factor and offset, one number a channel; None: a factor of 1, an offset of 0."""

    mean: Tensor
    var: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    eps: float


class Layout(NamedTuple):
    """Where the output channels of a weight are. `weight_axis`: 1 for a transposed convolution, else 0."""

    weight_axis: int
    groups: int


def scale_of(var: Tensor, gamma: Tensor | None, eps: float) -> Tensor:
    """gamma / sqrt(var + eps), one number a channel; None: gamma is 1."""
    std = (var + eps).sqrt()
    return std.reciprocal() if gamma is None else gamma / std


def check_statistics(mean: Tensor, var: Tensor, eps: float, where: Where | None = None) -> None:
    """Raises NumericsError where running statistics give no finite scale."""
    if not bool((var.double() + eps > 0).all()) or not bool(torch.isfinite(mean).all()):
        raise NumericsError("BatchNorm's running statistics are negative, zero without eps, or not finite", code="bad-batch-norm",
                            where=where, hint="the model was not trained, or its checkpoint is damaged")  # fmt: skip


def bias_of(bias: Tensor | None, mean: Tensor, scale: Tensor, beta: Tensor | None) -> Tensor:
    """(bias - mean) * scale + beta; None is 0."""
    shifted = (-mean if bias is None else bias - mean) * scale
    return shifted if beta is None else shifted + beta


def channels_of(weight: Tensor, weight_axis: int, groups: int) -> int:
    """Number of output channels. `weight_axis`: 1 for a transposed convolution, else 0."""
    return weight.shape[1] * groups if weight_axis == 1 else weight.shape[0]


def along_channels(weight: Tensor, values: Tensor, weight_axis: int, groups: int) -> Tensor:
    """`values`, one number an output channel, in a shape that broadcasts with `weight`."""
    if weight_axis == 0:
        return values.reshape(-1, *[1] * (weight.dim() - 1))
    rows = values.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, dim=0)
    return rows.reshape(*rows.shape, *[1] * (weight.dim() - 2))


def fold(weight: Tensor, bias: Tensor | None, norm: Norm, layout: Layout) -> tuple[Tensor, Tensor]:
    """(W', b'), computed in the dtype of the arguments and differentiable in all of them.

    Who quantizes W' must compute it in one dtype only: its largest value lies half-way between two integers, so that the last
    bit decides which one it becomes.
    """
    scale = scale_of(norm.var, norm.gamma, norm.eps)
    return weight * along_channels(weight, scale, *layout), bias_of(bias, norm.mean, scale, norm.beta)


def batch_norm_of_batch(y: Tensor, norm: Norm, count: Tensor | None, momentum: float | None) -> Tensor:
    """nn.BatchNorm in train mode on plain tensors; unlike it, no wait for the device where `momentum` is None."""
    mean, var, gamma, beta, eps = norm
    if count is not None:
        count.add_(1)
    if momentum is not None or count is None:
        return F.batch_norm(y, mean, var, gamma, beta, True, momentum or 0.0, eps)
    batch_mean, batch_var = torch.zeros_like(mean), torch.zeros_like(var)
    z = F.batch_norm(y, batch_mean, batch_var, gamma, beta, True, 1.0, eps)
    with torch.no_grad():
        share = 1.0 / count.to(mean.dtype)
        mean.lerp_(batch_mean, share)
        var.lerp_(batch_var, share)
    return z
