"""Fake quantization: values rounded to what the integers can hold, still in floating point, with straight-through gradients.

dx = dy where quant_min <= round(x / s) + z <= quant_max, else 0 (torch.fake_quantize_per_tensor_affine and its per-channel form).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from qcompiler.errors import CalibrationError, ConfigError
from qcompiler.ir.types import QParams
from qcompiler.observers import (
    FixedQParamsObserver,
    HistogramObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    ObserverBase,
    UniformQuantizationObserverBase,
    default_fixed_qparams_range_0to1_observer,
    default_fixed_qparams_range_neg1to1_observer,
    register_observer,
)
from qcompiler.observers.affine import SYMMETRIC
from qcompiler.observers.base import as_qparams, finite_range
from qcompiler.observers.defaults import XNNPACK_EPS


class FakeQuantizeBase(ObserverBase):
    """Base of modules that observe (`observer_enabled`) and fake-quantize (`fake_quant_enabled`) what passes."""

    fake_quant_enabled: torch.Tensor
    observer_enabled: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, dtype: torch.dtype, is_dynamic: bool = False) -> None:
        super().__init__(dtype, is_dynamic)
        self.register_buffer("fake_quant_enabled", torch.tensor([1], dtype=torch.int64))
        self.register_buffer("observer_enabled", torch.tensor([1], dtype=torch.int64))

    def enable_fake_quant(self, enabled: bool = True) -> None:
        self.fake_quant_enabled[0] = int(enabled)

    def disable_fake_quant(self) -> None:
        self.enable_fake_quant(False)

    def enable_observer(self, enabled: bool = True) -> None:
        self.observer_enabled[0] = int(enabled)

    def disable_observer(self) -> None:
        self.enable_observer(False)


@register_observer
class FakeQuantize(FakeQuantizeBase):
    """Fake quantization with the qparams of an observer, `activation_post_process`, updated at each call while enabled."""

    def __init__(
        self,
        observer: Any = MovingAverageMinMaxObserver,
        quant_min: int | None = None,
        quant_max: int | None = None,
        is_dynamic: bool = False,
        **observer_kwargs: Any,
    ) -> None:
        given = {"quant_min": quant_min, "quant_max": quant_max, "is_dynamic": is_dynamic or None, **observer_kwargs}
        made = observer(**{k: v for k, v in given.items() if v is not None})
        if not isinstance(made, UniformQuantizationObserverBase | FixedQParamsObserver):
            raise ConfigError(f"{type(made).__name__} has no qparams to fake-quantize with", code="fake-quant-observer")
        super().__init__(made.dtype, made.is_dynamic)
        self.activation_post_process = made
        assert made.qscheme is not None
        self.qscheme, self.ch_axis = made.qscheme, made.ch_axis
        floats = self.qscheme is torch.per_channel_affine_float_qparams
        self.register_buffer("scale", torch.tensor([1.0]))
        self.register_buffer("zero_point", torch.tensor([0], dtype=torch.float32 if floats else torch.int32))

    @property
    def quant_min(self) -> int:
        return self.activation_post_process.quant_min

    @property
    def quant_max(self) -> int:
        return self.activation_post_process.quant_max

    @property
    def observed(self) -> bool:
        return self.activation_post_process.observed

    def set_reduce_range(self, reduce: bool) -> None:
        self.activation_post_process.set_reduce_range(reduce)
        if self.observed:
            self._update()

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.activation_post_process.calculate_qparams()

    def qparams(self) -> QParams:
        """The qparams that `forward` uses, so that what is converted equals what was trained."""
        if not self.observed:
            raise CalibrationError(f"this {type(self).__name__} saw no data", code="not-calibrated")
        return as_qparams(self.scale, self.zero_point, self)

    def _update(self) -> None:
        scale, zero_point = self.calculate_qparams()
        self.scale.resize_(scale.shape).copy_(scale)
        self.zero_point.resize_(zero_point.shape).copy_(zero_point)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.numel():
            return x
        if self.observer_enabled[0] == 1:
            self.activation_post_process(x.detach())
            self._update()
        if self.fake_quant_enabled[0] != 1:
            return x
        ends = self.quant_min, self.quant_max
        if self.is_per_channel:
            axis = self.ch_axis % x.dim()
            return torch.fake_quantize_per_channel_affine(x, self.scale, self.zero_point, axis, *ends)
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, *ends)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("scale", "zero_point"):
            if (value := state_dict.get(prefix + name)) is not None:
                self._buffers[name] = torch.empty(value.shape, dtype=getattr(self, name).dtype)
        super()._load_from_state_dict(state_dict, prefix, *rest)


@register_observer
class FixedQParamsFakeQuantize(FakeQuantize):
    """Fake quantization with given qparams (a FixedQParamsObserver's)."""

    def __init__(self, observer: Any, **observer_kwargs: Any) -> None:
        super().__init__(observer, **observer_kwargs)
        if not isinstance(self.activation_post_process, FixedQParamsObserver):
            raise ConfigError("FixedQParamsFakeQuantize needs a FixedQParamsObserver", code="fake-quant-observer")
        self._update()


@register_observer
class FusedMovingAvgObsFakeQuantize(FakeQuantize):
    """Moving average, qparams and fake quantization in one kernel of torch; same results as FakeQuantize to rounding."""

    def __init__(
        self,
        observer: Any = MovingAverageMinMaxObserver,
        quant_min: int | None = None,
        quant_max: int | None = None,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__(observer, quant_min, quant_max, **observer_kwargs)
        if not isinstance(self.activation_post_process, MovingAverageMinMaxObserver | MovingAveragePerChannelMinMaxObserver):
            raise ConfigError("FusedMovingAvgObsFakeQuantize needs a moving-average observer", code="fake-quant-observer")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.numel():
            return x
        observer = self.activation_post_process
        assert isinstance(observer, MovingAverageMinMaxObserver | MovingAveragePerChannelMinMaxObserver)
        if self.observer_enabled[0] == 1:
            finite_range(x.detach())
        return torch.fused_moving_avg_obs_fake_quant(
            x,
            self.observer_enabled,
            self.fake_quant_enabled,
            observer.min_val,
            observer.max_val,
            self.scale,
            self.zero_point,
            observer.averaging_constant,
            self.quant_min,
            self.quant_max,
            self.ch_axis,
            self.is_per_channel,
            observer.qscheme in SYMMETRIC,
        )


def enable_fake_quant(module: nn.Module) -> None:
    """For `model.apply`: fake-quantize from now on."""
    if isinstance(module, FakeQuantizeBase):
        module.enable_fake_quant()


def disable_fake_quant(module: nn.Module) -> None:
    """For `model.apply`: pass values on unchanged."""
    if isinstance(module, FakeQuantizeBase):
        module.disable_fake_quant()


def enable_observer(module: nn.Module) -> None:
    """For `model.apply`: update qparams from now on."""
    if isinstance(module, FakeQuantizeBase):
        module.enable_observer()


def disable_observer(module: nn.Module) -> None:
    """For `model.apply`: keep qparams as they are."""
    if isinstance(module, FakeQuantizeBase):
        module.disable_observer()


_activation = {"observer": MovingAverageMinMaxObserver, "quant_min": 0, "quant_max": 255, "dtype": torch.uint8}
_weight = {
    "observer": MovingAverageMinMaxObserver,
    "quant_min": -128,
    "quant_max": 127,
    "dtype": torch.int8,
    "qscheme": torch.per_tensor_symmetric,
    "averaging_constant": 1.0,  # weights are seen anew at each step: no memory
}
_channel_weight = {
    **_weight,
    "observer": MovingAveragePerChannelMinMaxObserver,
    "qscheme": torch.per_channel_symmetric,
    "ch_axis": 0,
}
_narrow = {"quant_min": -127, "quant_max": 127, "eps": XNNPACK_EPS}

default_fake_quant = FakeQuantize.with_args(**_activation)
default_dynamic_fake_quant = default_fake_quant.with_args(is_dynamic=True, averaging_constant=1.0)
default_histogram_fake_quant = default_fake_quant.with_args(observer=HistogramObserver)
default_weight_fake_quant = FakeQuantize.with_args(**_weight)
default_per_channel_weight_fake_quant = FakeQuantize.with_args(**_channel_weight)
default_embedding_fake_quant = default_per_channel_weight_fake_quant.with_args(
    qscheme=torch.per_channel_affine_float_qparams, dtype=torch.uint8, quant_min=0, quant_max=255
)
default_embedding_fake_quant_4bit = default_embedding_fake_quant.with_args(dtype=torch.quint4x2, quant_min=0, quant_max=15)
default_fused_act_fake_quant = FusedMovingAvgObsFakeQuantize.with_args(**_activation)
default_fused_wt_fake_quant = FusedMovingAvgObsFakeQuantize.with_args(**_weight)
default_fused_per_channel_wt_fake_quant = FusedMovingAvgObsFakeQuantize.with_args(**_channel_weight)
fused_wt_fake_quant_range_neg_127_to_127 = default_fused_wt_fake_quant.with_args(**_narrow)
fused_per_channel_wt_fake_quant_range_neg_127_to_127 = default_fused_per_channel_wt_fake_quant.with_args(**_narrow)
default_fixed_qparams_range_neg1to1_fake_quant = FixedQParamsFakeQuantize.with_args(
    observer=default_fixed_qparams_range_neg1to1_observer
)
default_fixed_qparams_range_0to1_fake_quant = FixedQParamsFakeQuantize.with_args(observer=default_fixed_qparams_range_0to1_observer)
