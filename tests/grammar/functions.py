"""Functions of single values, within the range that they are made for; those that jump do so by a quarter of their steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.grammar.network import Draw, Made, apply, rule

Function = Callable[[Tensor], Tensor]

SMOOTH: tuple[Function, ...] = (
    torch.exp, torch.exp2, torch.expm1, lambda v: torch.exp(-v * v), lambda v: torch.log(v.abs() + 0.5), lambda v: torch.log2(v * v + 0.5),
    lambda v: torch.log10(v.abs() + 0.5), lambda v: torch.log1p(v.abs()), lambda v: (v.abs() + 0.1).sqrt(), lambda v: (v * v + 0.5).rsqrt(),
    lambda v: 1 / (v.abs() + 0.5), lambda v: torch.reciprocal(v.abs() + 1), torch.cos, lambda v: torch.tan(v.tanh()), torch.atan,
    lambda v: torch.asin(v.tanh() * 0.9), lambda v: torch.acos(v.tanh() * 0.9), lambda v: torch.sinh(v.tanh()), torch.asinh, torch.erfc,
    lambda v: torch.cosh(v.clamp(-2, 2)), lambda v: torch.acosh(v.abs() + 1.1), lambda v: torch.atanh(v.tanh() * 0.8), lambda v: v**2,
    lambda v: v.pow(3), lambda v: (v.abs() + 0.2) ** 0.5, lambda v: torch.pow(v.abs() + 0.5, -1.5), lambda v: torch.logit(v, 0.05),
    torch.nan_to_num, lambda v: F.softplus(v, 2, 5), lambda v: F.celu(v, 0.5), lambda v: F.elu(v, 0.3), F.softsign, F.logsigmoid,
    F.tanhshrink, lambda v: F.softshrink(v, 0.3), lambda v: F.rrelu(v, 0.1, 0.3), lambda v: F.leaky_relu(v, -0.5),
    lambda v: 2**v.clamp(-3, 3),
    lambda v: v * torch.tanh(F.softplus(v)), lambda v: v * F.relu6(v + 3) / 6, lambda v: torch.sigmoid(1.702 * v) * v, torch.sinc,
    lambda v: F.gelu(v, approximate="tanh"), lambda v: v.clamp(max=0.5), lambda v: v.clamp_min(-0.3), lambda v: torch.hypot(v, v + 1),
)  # fmt: skip
JUMPING: tuple[Function, ...] = (
    torch.floor, torch.ceil, torch.trunc, torch.round, torch.sign, lambda v: v - v.frac(),
    lambda v: F.threshold(v, 0.1, -0.5), lambda v: F.hardshrink(v, 0.4), lambda v: torch.heaviside(v, torch.ones(())),
)  # fmt: skip
MODULES: tuple[Callable[[], nn.Module], ...] = (
    nn.CELU, nn.SELU, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.RReLU, lambda: nn.Threshold(-1.0, -1.0), nn.PReLU,
    lambda: nn.Softplus(3.0), lambda: nn.GELU("tanh"), lambda: nn.Hardtanh(-0.5, 0.5), lambda: nn.ELU(0.4), lambda: nn.LeakyReLU(1.5),
)  # fmt: skip


@rule(4)
def smooth(draw: Draw, x: Tensor) -> Made | None:
    return None, draw.rng.choice(SMOOTH)


@rule(1)
def jumping(draw: Draw, x: Tensor) -> Made | None:
    function = draw.rng.choice(JUMPING)
    return None, lambda v: v + function(v * 4) * 0.25


@rule(1)
def activation_module(draw: Draw, x: Tensor) -> Made | None:
    return draw.rng.choice(MODULES)(), apply


@rule(1)
def of_two_numbers(draw: Draw, x: Tensor) -> Made | None:
    """Arithmetic with numbers, in the forms that users write."""
    return None, draw.pick(
        lambda v: torch.add(v, 1, alpha=2), lambda v: torch.rsub(v, 1), lambda v: 1.5 / (v * v + 1), lambda v: v.addcmul(v, v, value=0.5),
        lambda v: torch.lerp(v, v * 0.5, 0.3), lambda v: v.addcdiv(v, v.abs() + 1, value=2), lambda v: torch.minimum(v, v.neg() + 1),
        lambda v: torch.sub(v, v * v, alpha=0.25), lambda v: -v, lambda v: (v * 0.5 + 1) * 2 - 3, lambda v: v * v * v,
        lambda v: torch.clamp(v, v.mean() - 1, v.mean() + 1), lambda v: v.div(2).mul(3).sub(1), lambda v: torch.square(v).neg().exp(),
    )  # fmt: skip
