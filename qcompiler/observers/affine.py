"""The arithmetic between a range of real numbers and (scale, zero_point), shared by all observers.

Same formulas, in the same order of float32 operations, as torch.ao's observers, so results are bit-equal where those are
right. Symmetric: s = max(-min, max) / ((qmax - qmin) / 2). Affine: s = (max - min) / (qmax - qmin), z = qmin - round(min / s),
with the range widened to contain 0, so that real 0 is the integer z without error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qcompiler.errors import ConfigError, NumericsError
from qcompiler.observers.factory import plain_dtype

PER_TENSOR = (torch.per_tensor_affine, torch.per_tensor_symmetric)
PER_CHANNEL = (torch.per_channel_affine, torch.per_channel_symmetric, torch.per_channel_affine_float_qparams)
SYMMETRIC = (torch.per_tensor_symmetric, torch.per_channel_symmetric)

_RANGES = {torch.uint8: (0, 255), torch.int8: (-128, 127), torch.int32: (-(2**31), 2**31 - 1)}


@dataclass(frozen=True)
class Rule:
    """All that turns a range into qparams besides the range itself."""

    dtype: torch.dtype
    qscheme: torch.qscheme
    quant_min: int
    quant_max: int
    eps: float
    custom_range: bool = False

    @property
    def symmetric(self) -> bool:
        return self.qscheme in SYMMETRIC

    @property
    def symmetric_zero_point(self) -> int:
        if self.dtype is not torch.uint8:
            return 0
        if self.custom_range:
            return (self.quant_min + self.quant_max) // 2
        return (self.quant_min + self.quant_max + 1) // 2


def readable(tensor: torch.Tensor) -> bool:
    """Whether looking at a value costs nothing: on an accelerator it waits for all work, in torch.compile it splits the graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def quant_range(dtype: torch.dtype, quant_min: int | None, quant_max: int | None, reduce_range: bool, explicit: bool) -> tuple[int, int]:
    """Smallest and largest integer in use. `reduce_range` halves the range; `explicit`: the user asked for that.

    A reduction that was not asked for leaves a custom range of 7 bits or fewer as it is. ConfigError on impossible ranges.
    """
    plain = plain_dtype(dtype)
    if plain not in _RANGES:
        raise ConfigError(f"observers quantize to uint8, int8 or int32, not {dtype}", code="observer-dtype")
    low, high = (0, 15) if dtype is torch.quint4x2 else _RANGES[plain]
    if (quant_min is None) != (quant_max is None):
        raise ConfigError("give both quant_min and quant_max, or neither", code="quant-range")
    if quant_min is None or quant_max is None:
        halve = reduce_range and plain is not torch.int32 and high - low > 15
        return (low // 2, high // 2) if halve else (low, high)
    if not low <= quant_min < quant_max <= high:
        raise ConfigError(f"quant range {quant_min}..{quant_max} is not inside {low}..{high} of {plain}", code="quant-range")
    if not quant_min <= 0 <= quant_max:
        raise ConfigError(f"quant range {quant_min}..{quant_max} does not contain 0", code="quant-range")
    if reduce_range and (explicit or quant_max - quant_min > 127):
        quant_min, quant_max = quant_min // 2, quant_max // 2
    return quant_min, quant_max


def choose_qparams(low: torch.Tensor, high: torch.Tensor, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, zero_point) for the ranges low..high, float32, any shape; 0-d gives shape (1,).

    NumericsError where no finite scale > 0 holds the range (values that are not `readable` are not looked at). scale is at least
    eps, so empty ranges are fine.
    """
    low, high = low.reshape(-1) if low.dim() == 0 else low, high.reshape(-1) if high.dim() == 0 else high
    if rule.qscheme is torch.per_channel_affine_float_qparams:
        scale, zero_point = _float_qparams(low, high, rule)
    elif rule.symmetric:
        bound = torch.maximum(-low.clamp(max=0), high.clamp(min=0))
        scale = _at_least(bound / (float(rule.quant_max - rule.quant_min) / 2), rule.eps)
        zero_point = torch.full(scale.shape, rule.symmetric_zero_point, dtype=torch.int64, device=scale.device)
    else:
        scale, zero_point = _affine(low.clamp(max=0), high.clamp(min=0), rule)
    if readable(scale) and not bool(torch.isfinite(scale).all()):
        raise NumericsError(f"no finite scale holds the range {low.min().item():g} .. {high.max().item():g}", code="range")
    return scale, zero_point


def _affine(low: torch.Tensor, high: torch.Tensor, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    levels = float(rule.quant_max - rule.quant_min)
    scale = (high - low) / levels
    if not readable(scale) or not bool(torch.isfinite(scale).all()):  # high - low overflows beyond 3.4e38; the scale does not
        scale = torch.where(scale.isfinite(), scale, ((high.double() - low.double()) / levels).float())
    scale = _at_least(scale, rule.eps)
    zero_point = rule.quant_min - torch.round(low / scale).to(torch.int64)
    return scale, zero_point.clamp(rule.quant_min, rule.quant_max).to(torch.int32)


def _float_qparams(low: torch.Tensor, high: torch.Tensor, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    scale = (high - low) / float(rule.quant_max - rule.quant_min)
    scale = torch.where(scale > rule.eps, scale, torch.ones_like(scale))
    return scale, -1 * low / scale


def _at_least(scale: torch.Tensor, eps: float) -> torch.Tensor:
    return scale.clamp(min=eps)
