"""Observers of the smallest and largest value: overall, as a moving average, per tensor and per channel."""

from __future__ import annotations

import math

import torch

from qcompiler.errors import ConfigError, NumericsError
from qcompiler.observers.affine import PER_CHANNEL
from qcompiler.observers.base import (
    EPS,
    ObserverBase,
    UniformQuantizationObserverBase,
    as_data,
    finite_range,
    refuse_nonfinite,
)
from qcompiler.observers.factory import register_observer


@register_observer
class MinMaxObserver(UniformQuantizationObserverBase):
    """The smallest and largest value ever seen. `merge` is exact."""

    def __init__(
        self,
        dtype: torch.dtype = torch.uint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        reduce_range: bool | None = None,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = EPS,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(dtype, qscheme, reduce_range, quant_min, quant_max, eps, is_dynamic)
        self.register_buffer("min_val", torch.tensor(math.inf))
        self.register_buffer("max_val", torch.tensor(-math.inf))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel():
            self._widen(*finite_range(as_data(x)))
        return x

    def _widen(self, low: float, high: float) -> None:
        if low < self.min_val.item():
            self.min_val.fill_(low)
        if high > self.max_val.item():
            self.max_val.fill_(high)

    def merge(self, other: ObserverBase) -> None:
        self._check_same_kind(other)
        assert isinstance(other, MinMaxObserver)
        self._widen(other.min_val.item(), other.max_val.item())


class _Averaging:
    """A moving average depends on the order of the data, so two of them have no meaningful sum."""

    averaging_constant: float

    def merge(self, other: ObserverBase) -> None:
        raise ConfigError("moving averages depend on the order of the data and cannot be merged", code="observer-merge")

    def _average(self, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        result = old + self.averaging_constant * (new - old)
        if not bool(torch.isfinite(result).all()):
            raise NumericsError("the moving average left the range of float32", code="range")
        return result


def _check_constant(value: float) -> float:
    if not 0 < value <= 1:
        raise ConfigError(f"averaging_constant must be above 0 and at most 1, not {value}", code="observer-average")
    return value


@register_observer
class MovingAverageMinMaxObserver(_Averaging, MinMaxObserver):
    """Moving averages of each batch's smallest and largest value: m += c * (m_batch - m). Refuses `merge`."""

    def __init__(
        self,
        averaging_constant: float = 0.01,
        dtype: torch.dtype = torch.uint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        reduce_range: bool | None = None,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = EPS,
        is_dynamic: bool = False,
    ) -> None:
        self.averaging_constant = _check_constant(averaging_constant)
        super().__init__(dtype, qscheme, reduce_range, quant_min, quant_max, eps, is_dynamic)

    def _allows_dynamic(self) -> bool:
        return self.averaging_constant == 1

    def _widen(self, low: float, high: float) -> None:
        new = torch.tensor([low, high])
        if self.observed:
            new = self._average(torch.stack((self.min_val, self.max_val)), new)
        self.min_val.copy_(new[0])
        self.max_val.copy_(new[1])


@register_observer
class PerChannelMinMaxObserver(UniformQuantizationObserverBase):
    """The smallest and largest value of each slice along `ch_axis`. `merge` is exact.

    ConfigError when the first data has no such axis, or later data another number of channels.
    """

    _schemes = PER_CHANNEL

    def __init__(
        self,
        ch_axis: int = 0,
        dtype: torch.dtype = torch.uint8,
        qscheme: torch.qscheme = torch.per_channel_affine,
        reduce_range: bool | None = None,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = EPS,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(dtype, qscheme, reduce_range, quant_min, quant_max, eps, is_dynamic)
        self.ch_axis = ch_axis
        self.register_buffer("min_val", torch.tensor([]))
        self.register_buffer("max_val", torch.tensor([]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not -x.dim() <= self.ch_axis < x.dim():
            raise ConfigError(f"channel axis {self.ch_axis} is out of range for shape {tuple(x.shape)}", code="channel-axis")
        if x.numel():
            data = as_data(x)
            low, high = torch.aminmax(data.transpose(0, self.ch_axis).flatten(1), dim=1) if x.dim() > 1 else (data, data)
            if not bool((low.isfinite() & high.isfinite()).all()):
                refuse_nonfinite(data)
            self._widen(low, high)
        return x

    def _widen(self, low: torch.Tensor, high: torch.Tensor) -> None:
        if self.observed:
            if low.shape != self.min_val.shape:
                raise ConfigError(f"{low.numel()} channels after {self.min_val.numel()}", code="channel-count")
            low, high = self._combine(low, high)
        self.min_val.resize_(low.shape).copy_(low)
        self.max_val.resize_(high.shape).copy_(high)

    def _combine(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.minimum(self.min_val, low), torch.maximum(self.max_val, high)

    def merge(self, other: ObserverBase) -> None:
        self._check_same_kind(other)
        assert isinstance(other, PerChannelMinMaxObserver)
        if other.ch_axis != self.ch_axis:
            raise ConfigError(f"cannot merge channels of axis {other.ch_axis} into axis {self.ch_axis}", code="observer-merge")
        if other.observed:
            self._widen(other.min_val, other.max_val)

    def reset_min_max_vals(self) -> None:
        self.min_val, self.max_val = torch.tensor([]), torch.tensor([])


@register_observer
class MovingAveragePerChannelMinMaxObserver(_Averaging, PerChannelMinMaxObserver):
    """Moving averages of each batch's smallest and largest value per channel. Refuses `merge`."""

    def __init__(
        self,
        averaging_constant: float = 0.01,
        ch_axis: int = 0,
        dtype: torch.dtype = torch.uint8,
        qscheme: torch.qscheme = torch.per_channel_affine,
        reduce_range: bool | None = None,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = EPS,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(ch_axis, dtype, qscheme, reduce_range, quant_min, quant_max, eps, is_dynamic)
        self.averaging_constant = _check_constant(averaging_constant)

    def _combine(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._average(self.min_val, low), self._average(self.max_val, high)
