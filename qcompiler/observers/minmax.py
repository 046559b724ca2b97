"""Observers of the smallest and largest value: overall, as a moving average, per tensor and per channel."""

from __future__ import annotations

import math

import torch

from qcompiler.errors import ConfigError, NumericsError
from qcompiler.observers.affine import PER_CHANNEL, readable
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
            low, high = finite_range(as_data(x))
            self._widen(low, high)
            self._note(low, high)
        return x

    def _widen(self, low: torch.Tensor, high: torch.Tensor) -> None:
        self.min_val.copy_(torch.minimum(self.min_val, low))
        self.max_val.copy_(torch.maximum(self.max_val, high))

    def merge(self, other: ObserverBase) -> None:
        self._check_same_kind(other)
        assert isinstance(other, MinMaxObserver)
        self._widen(other.min_val.to(self.min_val.device), other.max_val.to(self.max_val.device))


class _Averaging:
    """A moving average depends on the order of the data, so two of them have no meaningful sum.

    `holds_batch`: in train mode the average is widened to the batch at hand first, so that it clips nothing of that; ranges grow at once
    and shrink by the average. What prepares a model for training sets it; it is no state.
    """

    averaging_constant: float
    training: bool
    holds_batch: bool = False
    min_val: torch.Tensor
    max_val: torch.Tensor

    def merge(self, other: ObserverBase) -> None:
        raise ConfigError("moving averages depend on the order of the data and cannot be merged", code="observer-merge")

    def hold(self, low: torch.Tensor, high: torch.Tensor) -> None:
        """Widens the average to a batch of this range, where `holds_batch` and in train mode."""
        if self.holds_batch and self.training:
            with torch.no_grad():
                self.min_val.copy_(torch.minimum(self.min_val, low))
                self.max_val.copy_(torch.maximum(self.max_val, high))

    def _average(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The averages after this batch; the batch's own where there is none yet. NaN and inf stay."""
        self.hold(low, high)
        fresh = self.min_val > self.max_val
        old, new = torch.stack((self.min_val, self.max_val)), torch.stack((low, high))
        result = torch.where(fresh, new, old + self.averaging_constant * (new - old))
        if readable(result) and not bool(torch.isfinite(result).all()):
            raise NumericsError("the moving average left the range of float32", code="range")
        return result[0], result[1]


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

    def _widen(self, low: torch.Tensor, high: torch.Tensor) -> None:
        low, high = self._average(low, high)
        self.min_val.copy_(low)
        self.max_val.copy_(high)


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
            if readable(data) and not bool((low.isfinite() & high.isfinite()).all()):
                refuse_nonfinite(data)
            self._widen(low, high)
        return x

    def allocate(self, channels: int) -> None:
        """Give the buffers their final size, with no data in them: nothing is resized later."""
        self.min_val.resize_(channels).fill_(math.inf)
        self.max_val.resize_(channels).fill_(-math.inf)

    def _widen(self, low: torch.Tensor, high: torch.Tensor) -> None:
        if not self.min_val.numel():
            self.allocate(low.numel())
        if low.shape != self.min_val.shape:
            raise ConfigError(f"{low.numel()} channels after {self.min_val.numel()}", code="channel-count")
        low, high = self._combine(low, high)
        self.min_val.copy_(low)
        self.max_val.copy_(high)

    def _combine(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.minimum(self.min_val, low), torch.maximum(self.max_val, high)

    def merge(self, other: ObserverBase) -> None:
        self._check_same_kind(other)
        assert isinstance(other, PerChannelMinMaxObserver)
        if other.ch_axis != self.ch_axis:
            raise ConfigError(f"cannot merge channels of axis {other.ch_axis} into axis {self.ch_axis}", code="observer-merge")
        if other.observed:
            self._widen(other.min_val.to(self.min_val.device), other.max_val.to(self.max_val.device))

    def reset_min_max_vals(self) -> None:
        self.min_val, self.max_val = self.min_val.new_empty(0), self.max_val.new_empty(0)


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
        return self._average(low, high)
