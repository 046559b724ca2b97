"""What a quantized module takes from the float or QAT module it replaces: folded weights, their qparams, the result's qparams."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.backends.torch.kernels import conv
from qcompiler.backends.torch.kernels.depthwise import safe_qparams
from qcompiler.backends.torch.target import TorchTarget
from qcompiler.errors import CalibrationError, ConfigError, NumericsError, QCompilerError, Where
from qcompiler.fake_quantize import FakeQuantize
from qcompiler.ir.types import QParams
from qcompiler.observers.base import ObserverBase, as_qparams
from qcompiler.observers.weights import take_axis
from qcompiler.ops.batch_norm import Layout, Norm, check_statistics, fold
from qcompiler.ops.reference import quantize_weight
from qcompiler.ops.spec import Op


@dataclass(frozen=True)
class Parts:
    """A float module taken apart: the module with the weight, a BatchNorm behind it, and what follows."""

    base: nn.Module
    norm: Any  # a BatchNorm or None
    tail: tuple[nn.Module, ...]

    def __str__(self) -> str:
        return ", ".join(type(m).__name__ for m in (self.base, self.norm, *self.tail) if m is not None)


def parts_of(mod: nn.Module) -> Parts:
    """By structure: a sequence [conv, bn, relu] (nn.intrinsic's, torch's or anyone's), or one module, which may hold a `bn`."""
    if not isinstance(mod, nn.Sequential):
        norm = getattr(mod, "bn", None)
        return Parts(mod, norm if isinstance(norm, nn.Module) else None, ())
    children = [child for name, child in mod.named_children() if name != "activation_post_process"]  # what prepare put there
    if not children:
        raise ConfigError(f"{type(mod).__name__} is empty", code="from-float")
    follows = len(children) > 1 and isinstance(children[1], nn.modules.batchnorm._BatchNorm)
    norm = children[1] if follows else getattr(children[0], "bn", None)
    return Parts(children[0], norm if isinstance(norm, nn.Module) else None, tuple(children[1 + follows :]))


def output_qparams(mod: nn.Module, where: Where) -> tuple[float, int]:
    """(scale, zero_point) of the result, from the observer or fake-quantize that saw it.

    Raises CalibrationError where there is none or it saw no data, ConfigError where it did not observe uint8 or int8.
    """
    observer = getattr(mod, "activation_post_process", None)
    if observer is None or isinstance(observer, nn.Identity):
        raise CalibrationError(f"{type(mod).__name__} has no activation_post_process: nothing observed its result", code="not-calibrated",
                               where=where, hint="set .qconfig, call prepare, and run it on data")  # fmt: skip
    try:
        qparams = qparams_of(_as_kernels_want(observer)).unsigned()
    except QCompilerError as error:
        error.where = where
        raise
    if qparams.dtype is not torch.uint8:
        raise ConfigError(f"the result was observed as {qparams.dtype}; the kernels give torch.uint8", code="activation-dtype", where=where,
                          hint="use an activation observer with dtype=torch.quint8 or torch.qint8")  # fmt: skip
    assert isinstance(qparams.scale, float) and isinstance(qparams.zero_point, int)
    return qparams.scale, qparams.zero_point


ALL_CODES = (0, 255)


def trained_ends(mod: nn.Module) -> tuple[int, int]:
    """The codes between which training cut the result. Kernels cut at 0 and 255, and after calibration that is all."""
    trained = getattr(mod, "activation_post_process", None)
    if not hasattr(trained, "fake_quant_enabled"):  # ours and torch's have it
        return ALL_CODES
    qparams = qparams_of(trained).unsigned()
    return qparams.quant_min, qparams.quant_max


def adds_in_16_bits() -> bool:
    """Whether kernels of torch's quantized engine do so on this machine: they overflow where activations have 8 bits."""
    return TorchTarget(torch.backends.quantized.engine).reduces_all


def _as_kernels_want(observer: Any) -> Any:
    """An observer with the bits that kernels take on this machine, where `convert` did not decide and the user left it open. What was
    trained stays as it is.

    Warns where activations have 8 bits all the same.
    """
    if not isinstance(observer, ObserverBase) or observer.decided or not adds_in_16_bits():
        return observer
    if getattr(getattr(observer, "activation_post_process", None), "decided", False):
        return observer
    made = observer
    if not hasattr(observer, "fake_quant_enabled"):
        made = copy.deepcopy(observer)
        made.set_reduce_range(True)
    qparams = qparams_of(made)
    if qparams.dtype is not torch.int32 and qparams.quant_max - qparams.quant_min > 127:
        warnings.warn("activations have 8 bits, but kernels add products in 16 bits on this CPU, which lacks VNNI: large sums are cut off. "
                      "Leave reduce_range open, or make the observer's quant_max 127", UserWarning, stacklevel=3)  # fmt: skip
    return made


def qparams_of(observer: Any) -> QParams:
    """The qparams of an observer or fake-quantize, ours or torch's own. CalibrationError where it saw no data."""
    if hasattr(observer, "qparams"):
        return observer.qparams()  # type: ignore[no-any-return]
    low = getattr(getattr(observer, "activation_post_process", observer), "min_val", None)
    if isinstance(low, Tensor) and (low.numel() == 0 or bool(low.isinf().all())):
        raise CalibrationError(f"this {type(observer).__name__} saw no data", code="not-calibrated", hint="run the prepared model on data")
    scale, zero_point = observer.calculate_qparams()
    return as_qparams(scale, zero_point, _Foreign(observer))


class _Foreign:
    """What as_qparams reads of an observer, from one of torch.ao's."""

    def __init__(self, observer: Any) -> None:
        self.quant_min, self.quant_max = observer.quant_min, observer.quant_max
        self.dtype = {torch.quint8: torch.uint8, torch.qint8: torch.int8}.get(observer.dtype, observer.dtype)
        self.is_per_channel = observer.qscheme in (torch.per_channel_affine, torch.per_channel_symmetric)
        self.ch_axis = getattr(observer, "ch_axis", -1)


def float_weight(parts: Parts, weight_axis: int) -> tuple[Tensor, Tensor | None]:
    """(weight, bias) of the base module, with the BatchNorm's running statistics folded in."""
    base: Any = parts.base
    weight, bias = base.weight.detach().float(), None if base.bias is None else base.bias.detach().float()
    if parts.norm is None:
        return weight, bias
    statistics = statistics_of(parts.norm)
    return fold(weight, bias, Norm(*statistics, parts.norm.eps), Layout(weight_axis, getattr(base, "groups", 1)))


def statistics_of(bn: Any) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(running mean, running variance, weight, bias) of a BatchNorm.

    Raises ConfigError where it keeps no statistics, NumericsError where they give no finite scale.
    """
    mean, var, weight, bias = (None if t is None else t.detach().float() for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    if mean is None or var is None:
        raise ConfigError(f"this {type(bn).__name__} keeps no running statistics, so it computes them from each batch", code="batch-norm")
    check_statistics(mean, var, bn.eps)
    return mean, var, weight, bias


@dataclass(frozen=True)
class Int8:
    """A weight as it is stored; `axis` None is per tensor, and then scale and zero_point have no dimension."""

    values: Tensor
    scale: Tensor
    zero_point: Tensor
    axis: int | None


def int8_weight(row: Op, attributes: dict[str, object], weight: Tensor, mod: nn.Module, engine: str, where: Where) -> Int8:
    """The weight quantized with the module's fake-quantize, which keeps its qparams, or with its qconfig's observer.

    Depthwise weights are made safe for 16-bit sums. Raises ConfigError where neither is there, or for a dtype other than int8 and uint8.
    """
    trained = getattr(mod, "weight_fake_quant", None)
    if isinstance(trained, FakeQuantize):  # an optimizer step may be the last thing that happened to the weight
        trained = copy.deepcopy(trained)
        trained.keep_safe(weight)
    observer = trained if trained is not None else _observed(row, weight, mod, where)
    qparams = qparams_of(observer).signed()
    if qparams.dtype is not torch.int8:
        raise ConfigError(f"the weight was observed as {qparams.dtype}; the kernels take torch.int8", code="weight-dtype", where=where)
    axis = None if qparams.channel_axis is None else row.weight_axis
    shape = () if axis is None else (-1,)
    scale = torch.tensor(qparams.scale, dtype=torch.float64).reshape(shape)
    zero_point = torch.tensor(qparams.zero_point, dtype=torch.int64).reshape(shape)
    if conv.saturation(row.family, tuple(weight.shape), attributes, engine, TorchTarget(engine).isa) == "pairs":
        scale, zero_point = _safe(weight, scale, zero_point, qparams.quant_max, engine if trained is not None else None, where)
    return Int8(quantize_weight(weight, scale, zero_point, axis, qparams.quant_min, qparams.quant_max), scale, zero_point, axis)


def _observed(row: Op, weight: Tensor, mod: nn.Module, where: Where) -> object:
    """The qconfig's weight observer after it saw the weight."""
    observer = _weight_observer(mod, where)
    if _per_channel(observer):
        if row.weight_axis != 0:  # a fake-quantize cannot change its axis, the observer in it can
            observer = getattr(observer, "activation_post_process", observer)
        take_axis(observer, row.weight_axis, weight, where)
    try:
        observer(weight)
    except NumericsError as error:
        raise NumericsError(f"weight: {error.message}", code=error.code, where=where) from error
    return observer


def _weight_observer(mod: nn.Module, where: Where) -> Any:
    qconfig: Any = getattr(mod, "qconfig", None)
    qconfig = qconfig or next((q for q in (getattr(child, "qconfig", None) for child in mod.children()) if q), None)
    if qconfig is None:
        raise ConfigError(f"{type(mod).__name__} has no qconfig, which says how to quantize its weight", code="no-qconfig", where=where,
                          hint="set .qconfig on it or on the model and call prepare")  # fmt: skip
    return qconfig.weight()


def _per_channel(observer: Any) -> bool:
    return observer.qscheme in (torch.per_channel_affine, torch.per_channel_symmetric)


def _warn(where: Where, text: str) -> None:
    place = f"{where.module_path}: " if where.module_path else ""
    warnings.warn(place + text, UserWarning, stacklevel=2)


def _safe(weight: Tensor, scale: Tensor, zero_point: Tensor, quant_max: int, trained: str | None, where: Where) -> tuple[Tensor, Tensor]:
    """(scale, zero_point) at which fbgemm's depthwise kernel cannot overflow 16 bits; a warning where the weight was `trained`
    with others, for this engine."""
    safe = safe_qparams(weight, scale, zero_point, quant_max)
    if trained is not None and not (torch.equal(safe[0], scale) and torch.equal(safe[1], zero_point)):
        changed = (safe[0] != scale) | (safe[1] != zero_point)
        _warn(where, f"{int(changed.sum())} of {scale.numel()} trained weight scales were enlarged: {trained}'s depthwise kernel "
                     "adds in 16 bits, which these weights would overflow")  # fmt: skip
    return safe
