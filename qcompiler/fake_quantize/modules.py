"""Modules that round values to what the integers can hold, still in floating point, with straight-through gradients.

dx = dy where quant_min <= round(x / s) + z <= quant_max, else 0 (torch.fake_quantize_per_tensor_affine and its per-channel form).
Half-precision values (autocast) are rounded in float32 and handed on in their own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from qcompiler.errors import CalibrationError, ConfigError
from qcompiler.fake_quantize.switches import FakeQuantizeBase
from qcompiler.ir.types import QParams
from qcompiler.observers import (
    FixedQParamsObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    UniformQuantizationObserverBase,
    register_observer,
)
from qcompiler.observers.affine import SYMMETRIC, readable
from qcompiler.observers.base import as_qparams, finite_range


def round_per_tensor(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """torch.fake_quantize_per_tensor_affine with qparams in tensors, also in torch.compile, which has no such kernel."""
    if torch.compiler.is_compiling():
        return torch.fake_quantize_per_channel_affine(x.reshape(1, -1), scale, zero_point, 0, low, high).reshape(x.shape)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)


@register_observer
class FakeQuantize(FakeQuantizeBase):
    """Fake quantization with the qparams of an observer, `activation_post_process`, updated at each call while enabled.

    `least_scale(x)`, if set: the smallest scale of each channel that a kernel's partial sums allow. It holds with observers off
    too: the bound is the kernel's, not the data's. What prepares a model for training sets it; it is no state.
    """

    least_scale: Callable[[torch.Tensor], torch.Tensor] | None = None

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
        self.qscheme = made.qscheme
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
    def ch_axis(self) -> int:  # type: ignore[override]
        return self.activation_post_process.ch_axis

    @ch_axis.setter
    def ch_axis(self, axis: int) -> None:
        self.activation_post_process.ch_axis = axis

    @property
    def measures(self) -> bool:
        return self.activation_post_process.measures

    @property
    def observed(self) -> bool:
        return self.activation_post_process.observed

    def allocate(self, channels: int) -> None:
        """Give the per-channel buffers their final size, with no data in them: nothing is resized in training."""
        if isinstance(self.activation_post_process, PerChannelMinMaxObserver):
            self.activation_post_process.allocate(channels)
        for name in ("scale", "zero_point"):
            self._resize(name, torch.Size([channels]))

    def _resize(self, name: str, shape: torch.Size) -> None:
        getattr(self, name).resize_(shape).fill_(name == "scale")

    def set_reduce_range(self, reduce: bool) -> None:
        before = self.quant_min, self.quant_max
        self.activation_post_process.set_reduce_range(reduce)
        if (self.quant_min, self.quant_max) != before and self.observed:
            self._update()

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The qparams that `forward` uses, so that what is converted equals what was trained."""
        if readable(self.scale) and not self.observed:
            raise CalibrationError(f"this {type(self).__name__} saw no data", code="not-calibrated")
        return self.in_use()

    def qparams(self) -> QParams:
        if not self.observed:
            raise CalibrationError(f"this {type(self).__name__} saw no data", code="not-calibrated")
        return as_qparams(*self.calculate_qparams(), self)

    def per_tensor(self) -> FakeQuantize:
        """A fresh one of the same kind with one symmetric scale. ConfigError for float zero points, which are per channel."""
        if self.qscheme is torch.per_channel_affine_float_qparams:
            raise ConfigError("float zero points are per channel", code="observer-qscheme")
        return type(self)(MovingAverageMinMaxObserver, self.quant_min, self.quant_max, dtype=self.dtype,
                          qscheme=torch.per_tensor_symmetric, averaging_constant=1.0)  # fmt: skip

    def _found(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point for what was observed."""
        return self.activation_post_process.calculate_qparams()

    def _update(self) -> None:
        scale, zero_point = self._found()
        with torch.no_grad():
            for name, value in (("scale", scale), ("zero_point", zero_point)):
                if getattr(self, name).shape != value.shape:
                    self._resize(name, value.shape)
                getattr(self, name).copy_(value)

    def keep_safe(self, x: torch.Tensor) -> None:
        """Raises the scales that are below what `least_scale` allows for x. For calls that observe nothing as well."""
        if self.least_scale is None:
            return
        with torch.no_grad():
            least = self.least_scale(x.detach())
            self.scale.copy_(torch.maximum(self.scale, least if self.is_per_channel else least.amax()))

    def in_use(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point as `forward` applies them, whether or not data was seen. Without gradients."""
        return self.scale, self.zero_point

    def _round(self, x: torch.Tensor) -> torch.Tensor:
        ends = self.quant_min, self.quant_max
        if self.is_per_channel:
            axis = self.ch_axis % x.dim()
            return torch.fake_quantize_per_channel_affine(x, self.scale, self.zero_point, axis, *ends)
        return round_per_tensor(x, self.scale, self.zero_point, *ends)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.numel():
            return x
        if self.is_on("observer_enabled"):
            self.activation_post_process(x.detach())
            self._update()
        self.keep_safe(x)
        return self.rounded(x)

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """x with the qparams as they are: nothing is observed. x itself where `fake_quant_enabled` is off."""
        if not self.is_on("fake_quant_enabled"):
            return x
        return self._round(x if x.dtype is torch.float64 else x.float()).to(x.dtype)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("scale", "zero_point"):
            if (value := state_dict.get(prefix + name)) is not None:
                self._resize(name, value.shape)
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
    """Moving average, qparams and fake quantization in one kernel of torch, in float32. It reads the switches on the device.

    Its symmetric scales are max(-low / 128, high / 127), FakeQuantize's max(-low, high) / 127.5 (in int8): at most 0.4 % apart.
    For those it takes the formula, not the kernel, which gives channels whose values have one sign a zero point other than 0.
    """

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

    @property
    def _is_signed(self) -> bool:
        return self.qscheme in SYMMETRIC and self.quant_min < 0

    def _found(self) -> tuple[torch.Tensor, torch.Tensor]:
        observer = self.activation_post_process
        if not self._is_signed or not isinstance(observer, UniformQuantizationObserverBase):
            return super()._found()
        low, high = observer.min_val.clamp(max=0).reshape(-1), observer.max_val.clamp(min=0).reshape(-1)
        scale = torch.maximum(torch.maximum(low / self.quant_min, high / self.quant_max), observer.eps)
        return scale, torch.zeros_like(scale, dtype=torch.int32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        observer = self.activation_post_process
        if self._is_signed or self.least_scale is not None:
            return super().forward(x)
        if not x.numel():
            return x
        assert isinstance(observer, MovingAverageMinMaxObserver | MovingAveragePerChannelMinMaxObserver)
        if (readable(x) or observer.holds_batch) and self.is_on("observer_enabled"):
            observer.hold(*finite_range(x.detach()))
        axis = self.ch_axis % x.dim() if self.is_per_channel else 0  # the kernel takes channels in dimension 0 alone
        rounded: torch.Tensor = torch.fused_moving_avg_obs_fake_quant(
            x.float().transpose(0, axis) if axis else x.float(),
            self.observer_enabled,
            self.fake_quant_enabled,
            observer.min_val,
            observer.max_val,
            self.scale,
            self.zero_point,
            observer.averaging_constant,
            self.quant_min,
            self.quant_max,
            0 if self.is_per_channel else -1,
            self.is_per_channel,
            observer.qscheme in SYMMETRIC,
        )
        return (rounded.transpose(0, axis) if axis else rounded).to(x.dtype)
