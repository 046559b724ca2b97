"""Which sequences of float modules fuse, and into what.

In eval mode BatchNorm is folded into the weight before it. `is_qat`: it stays a part of the container, to be trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from qcompiler.errors import ConfigError, NumericsError
from qcompiler.inputs.door import door
from qcompiler.nn import intrinsic as nni
from qcompiler.ops.batch_norm import Layout, Norm, channels_of, fold
from qcompiler.trace.parametrize import fold_parametrizations

__all__ = ["fuse_conv_bn", "fuse_conv_bn_relu", "fuse_convtranspose_bn", "fuse_linear_bn", "get_fuser_method"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WITH_BN: dict[type, type[nn.Module]] = {
    nn.Conv1d: nni.ConvBn1d, nn.Conv2d: nni.ConvBn2d, nn.Conv3d: nni.ConvBn3d, nn.ConvTranspose1d: nni.ConvTransposeBn1d,
    nn.ConvTranspose2d: nni.ConvTransposeBn2d, nn.ConvTranspose3d: nni.ConvTransposeBn3d,
}  # fmt: skip
WITH_BN_RELU: dict[type, type[nn.Module]] = {
    nn.Conv1d: nni.ConvBnReLU1d, nn.Conv2d: nni.ConvBnReLU2d, nn.Conv3d: nni.ConvBnReLU3d
}  # fmt: skip
WITH_RELU: dict[type, type[nn.Module]] = {
    nn.Conv1d: nni.ConvReLU1d, nn.Conv2d: nni.ConvReLU2d, nn.Conv3d: nni.ConvReLU3d, nn.Linear: nni.LinearReLU
}  # fmt: skip


def folded(module: nn.Module, bn: nn.Module) -> nn.Module:
    """A copy of a convolution or linear with the BatchNorm behind it in its weight and bias (both in eval mode)."""
    made: Any = fold_parametrizations(module)
    norm: Any = bn
    batch_norm = Norm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
    layout = Layout(int(isinstance(made, TRANSPOSED)), getattr(made, "groups", 1))
    weight, bias = fold(made.weight.detach(), None if made.bias is None else made.bias.detach(), batch_norm, layout)
    made.weight = nn.Parameter(weight.detach(), requires_grad=made.weight.requires_grad)
    made.bias = nn.Parameter(bias.detach(), requires_grad=made.weight.requires_grad)
    return made  # type: ignore[no-any-return]


def _check(is_qat: bool, module: Any, bn: Any) -> None:
    """The two can be fused. Raises ConfigError, NumericsError."""
    pair = f"{type(module).__name__} and {type(bn).__name__}"
    if module.training != bn.training:
        raise ConfigError(f"{pair} are in different modes: one trains, the other does not", code="fuse-mode")
    if bn.running_var is None or (is_qat and not bn.affine):
        lacks = "running statistics" if bn.running_var is None else "gamma and beta to train"
        raise ConfigError(f"{pair} do not fuse: this BatchNorm has no {lacks}", code="fuse-bn")
    channels = channels_of(module.weight, int(isinstance(module, TRANSPOSED)), getattr(module, "groups", 1))
    if bn.num_features != channels:
        raise ConfigError(f"{pair} do not fuse: {channels} output channels, {bn.num_features} in the BatchNorm", code="fuse-channels")
    if not bool((bn.running_var.double() + bn.eps > 0).all()) or not bool(torch.isfinite(bn.running_mean).all()):
        raise NumericsError(f"{pair} do not fuse: the running statistics are negative, zero without eps, or not finite",
                            code="bad-batch-norm", hint="the model was not trained, or its checkpoint is damaged")  # fmt: skip


@door
def fuse_conv_bn(is_qat: bool, conv: nn.Module, bn: nn.Module) -> nn.Module:
    """A convolution with the BatchNorm folded in; `is_qat`: a ConvBn container. ConfigError where they do not fit."""
    _check(is_qat, conv, bn)
    return WITH_BN[type(conv)](conv, bn) if is_qat else folded(conv, bn)


@door
def fuse_conv_bn_relu(is_qat: bool, conv: nn.Module, bn: nn.Module, relu: nn.Module) -> nn.Module:
    """A ConvReLU container with the BatchNorm folded in; `is_qat`: a ConvBnReLU container. ConfigError where they do not fit."""
    _check(is_qat, conv, bn)
    return WITH_BN_RELU[type(conv)](conv, bn, relu) if is_qat else WITH_RELU[type(conv)](folded(conv, bn), relu)


@door
def fuse_linear_bn(is_qat: bool, linear: nn.Module, bn: nn.Module) -> nn.Module:
    """A linear with the BatchNorm folded in; `is_qat`: a LinearBn1d container. ConfigError where they do not fit."""
    _check(is_qat, linear, bn)
    return nni.LinearBn1d(linear, bn) if is_qat else folded(linear, bn)


def _fuse_linear_bn_relu(is_qat: bool, linear: nn.Module, bn: nn.Module, relu: nn.Module) -> nn.Module:
    _check(is_qat, linear, bn)
    if is_qat:
        raise ConfigError("Linear, BatchNorm1d, ReLU train as LinearBn1d and a ReLU of its own", code="fuse-qat",
                          hint="leave the ReLU out of this list")  # fmt: skip
    return nni.LinearReLU(folded(linear, bn), relu)


@door
def fuse_convtranspose_bn(is_qat: bool, convt: nn.Module, bn: nn.Module) -> nn.Module:
    """A transposed convolution with the BatchNorm folded in; `is_qat`: a ConvTransposeBn container. ConfigError where they do not fit."""
    _check(is_qat, convt, bn)
    return WITH_BN[type(convt)](convt, bn) if is_qat else folded(convt, bn)


def _container(cls: type[nn.Module]) -> Callable[..., nn.Module]:
    return lambda is_qat, *parts: cls(*parts)


Fuser = Callable[..., nn.Module]
FUSERS: dict[tuple[type, ...], Fuser] = {
    **dict.fromkeys(zip((nn.Conv1d, nn.Conv2d, nn.Conv3d), (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)), fuse_conv_bn),
    **{(c, b, nn.ReLU): fuse_conv_bn_relu
       for c, b in zip((nn.Conv1d, nn.Conv2d, nn.Conv3d), (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))},
    **{(c, nn.ReLU): _container(cls) for c, cls in WITH_RELU.items()},
    **dict.fromkeys(zip(TRANSPOSED, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)), fuse_convtranspose_bn),
    (nn.Linear, nn.BatchNorm1d): fuse_linear_bn,
    (nn.Linear, nn.BatchNorm1d, nn.ReLU): _fuse_linear_bn_relu,
    (nn.Linear, nn.LeakyReLU): _container(nni.LinearLeakyReLU),
    (nn.Linear, nn.Tanh): _container(nni.LinearTanh),
    (nn.BatchNorm2d, nn.ReLU): _container(nni.BNReLU2d),
    (nn.BatchNorm3d, nn.ReLU): _container(nni.BNReLU3d),
}  # fmt: skip


@door
def get_fuser_method(op_list: Sequence[type], additional_fuser_method_mapping: Mapping[tuple[type, ...], Fuser] | None = None) -> Fuser:
    """The function `f(is_qat, *modules)` that fuses modules of these classes. ConfigError where there is none."""
    known = {**FUSERS, **(additional_fuser_method_mapping or {})}
    found = known.get(tuple(op_list))
    if found is None:
        raise ConfigError(_offence(tuple(op_list), known), code="fuse-types", hint=_closest(list(op_list), known))
    return found


def _offence(classes: tuple[type, ...], known: Mapping[tuple[type, ...], Fuser]) -> str:
    """Which class stands where no known sequence has it."""
    begun = max((n for n in range(len(classes) + 1) if any(k[:n] == classes[:n] for k in known)), default=0)
    if begun == len(classes):
        return f"{_spell(classes)} alone do not fuse"
    if begun == 0:
        return f"{classes[0].__name__} does not begin a chain that fuses"
    return f"{classes[begun].__name__} does not fuse behind {_spell(classes[:begun])}"


def _closest(classes: list[type], known: Mapping[tuple[type, ...], Fuser]) -> str:
    """What would fuse: the same classes in another order, else what begins with the same class, else all."""
    same = [k for k in known if sorted(map(repr, k)) == sorted(map(repr, classes))]
    begun = [k for k in known if k[0] is classes[0]] if classes else []
    return ("in this order: " if same else "these do: ") + "; ".join(_spell(k) for k in same or begun or known)


def _spell(classes: Sequence[type]) -> str:
    return ", ".join(cls.__name__ for cls in classes)


WITH_BATCH_NORM = (fuse_conv_bn, fuse_conv_bn_relu, fuse_linear_bn, fuse_convtranspose_bn)


def without_batch_norm(module: nn.Module) -> nn.Module:
    """The eval form of a container that holds a BatchNorm to be trained: that BatchNorm folded in. Others come back as they are."""
    fuser = FUSERS.get(getattr(type(module), "PARTS", ()))
    return fuser(False, *module.children()) if fuser in WITH_BATCH_NORM else module
