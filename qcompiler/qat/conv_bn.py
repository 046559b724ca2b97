"""Convolution or linear + batch norm in quantization-aware training: the weight is fake-quantized as it will be deployed, folded.

Training, with s = gamma / sqrt(running_var + eps) and Q the fake quantization of weights:

    y = conv(x, Q(W * s)) / s + b        an estimate of conv(x, W) + b, with the rounding errors of the folded weight
    z = batch_norm(y)                    batch statistics; running statistics move as without quantization

Scaling by the running standard deviation and not by the batch's keeps the weight's steps from jittering with each batch
(Krishnamoorthi, arXiv:1806.08342, section 3.2.2). Without Q, s cancels: outputs, gradients and statistics are those of conv + BN.

A channel of gamma = 0 has a folded weight of zeros, from which y cannot be recovered (0 / 0). There y is conv(x, W) + b: z is
beta either way, and gamma's gradient and the running statistics are those of conv + BN. That is a selection in the weight, so it
costs no second convolution.

Evaluation, or frozen statistics: conv(x, Q(W * s), (b - running_mean) * s + beta), what convert will compute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.ops.batch_norm import Layout, Norm, along_channels, batch_norm_of_batch, fold, scale_of

# y / s has no digits left where s comes near float32's smallest numbers (1e-38) and W * s beneath them.
SMALLEST_SCALE = 1e-18

Call = Callable[[Tensor, Tensor, Tensor | None], Tensor]
FakeQuant = Callable[[Tensor], Tensor]


class ConvBn(NamedTuple):
    """A convolution or linear with a batch norm behind it. `call(x, w, b)` runs it; the folded weight goes through `fake_quant`.

    Inputs have a batch dimension, and channels in dimension 1 (InputError otherwise).
    """

    call: Call
    fake_quant: FakeQuant
    norm: Norm
    layout: Layout

    def trained(self, x: Tensor, weight: Tensor, bias: Tensor | None, count: Tensor | None, momentum: float | None) -> Tensor:
        """batch_norm(call(x, weight, bias)). The running statistics move in place (`momentum` None: cumulative average)."""
        # a copy: compiled graphs count the step of the statistics as a change of what the backward pass needs
        held = self._replace(norm=self.norm._replace(var=self.norm.var.clone()))
        return batch_norm_of_batch(held.unnormalized(x, weight, bias), self.norm, count, momentum)

    def folded(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What is deployed: one convolution with folded weight and bias. Differentiable in weight, bias, gamma and beta."""
        _check_batched(x, weight)
        w, b = fold(weight, bias, self.norm, self.layout)
        return self.call(x, self.fake_quant(w), b)

    def unnormalized(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """call(x, weight, bias) with the rounding errors that the folded weight has: what batch norm is applied to in training."""
        _check_batched(x, weight)
        var = self.norm.var
        scale = scale_of(_held(var) if torch.compiler.is_compiling() else var, self.norm.gamma, self.norm.eps)
        lost = scale.detach().abs() < SMALLEST_SCALE
        quantized = self.fake_quant(weight * along_channels(weight, scale, *self.layout))
        quantized = torch.where(along_channels(weight, lost, *self.layout), weight, quantized)
        y = self.call(x, quantized, None)
        y = y / _across(y, torch.where(lost, torch.ones_like(scale), scale))
        return y if bias is None else y + _across(y, bias)


def conv_bn(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None, mean: Tensor, var: Tensor, gamma: Tensor | None,
            beta: Tensor | None, count: Tensor | None, *, fake_quant: FakeQuant, training: bool, momentum: float | None,
            eps: float, weight_axis: int, groups: int) -> Tensor:  # fmt: skip
    """batch_norm(call(x, weight, bias)) with the folded weight through `fake_quant`.

    `call(x, w, b)` runs the convolution or linear. `mean`, `var`, `count`: running statistics, moved in place if `training`
    (`momentum` None: cumulative average). `weight_axis`: 1 for a transposed convolution, else 0. x has a batch dimension, and
    channels in dimension 1 (InputError otherwise).
    """
    both = ConvBn(call, fake_quant, Norm(mean, var, gamma, beta, eps), Layout(weight_axis, groups))
    return both.trained(x, weight, bias, count, momentum) if training else both.folded(x, weight, bias)


@torch.library.custom_op("qcompiler::held", mutates_args=())
def _held(var: Tensor) -> Tensor:
    """A copy that torch.compile keeps for the backward pass. It would otherwise compute the scale there once more, from running
    statistics that batch norm has moved by then, and give wrong gradients. An op it does not know is never computed again."""
    return var.clone()


@_held.register_fake
def _(var: Tensor) -> Tensor:
    return torch.empty_like(var)


def _across(y: Tensor, values: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (y.dim() - 2))


def _check_batched(x: Tensor, weight: Tensor) -> None:
    if x.dim() != weight.dim():
        raise InputError(f"an input of shape {tuple(x.shape)}, where batch norm needs {weight.dim()} dimensions", code="batch-norm-input",
                         hint="(batch, channels, ...); for a linear (batch, features)")  # fmt: skip
