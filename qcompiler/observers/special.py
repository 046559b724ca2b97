"""Observers that do not measure a range: fixed qparams, placeholders, recorders."""

from __future__ import annotations

import math

import torch

from qcompiler.errors import ConfigError
from qcompiler.ir.types import halved, halved_ends
from qcompiler.observers.affine import PER_TENSOR, quant_range
from qcompiler.observers.base import ObserverBase
from qcompiler.observers.factory import register_observer


@register_observer
class FixedQParamsObserver(ObserverBase):
    """Qparams that are given, not measured: the mathematical range of an op such as sigmoid."""

    scale: torch.Tensor
    zero_point: torch.Tensor
    halved = False

    def __init__(
        self,
        scale: float,
        zero_point: int,
        dtype: torch.dtype = torch.uint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        quant_min: int = 0,
        quant_max: int = 255,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(dtype, is_dynamic)
        if is_dynamic or qscheme not in PER_TENSOR:
            raise ConfigError("fixed qparams are static and per tensor", code="observer-qscheme")
        if not (math.isfinite(scale) and scale > 0):
            raise ConfigError(f"scale must be a number above 0, not {scale}", code="observer-scale")
        self.quant_min, self.quant_max = quant_range(dtype, quant_min, quant_max, reduce_range=False, explicit=False)
        if not self.quant_min <= zero_point <= self.quant_max:
            raise ConfigError(f"zero_point {zero_point} is not in {quant_min}..{quant_max}", code="observer-zero-point")
        middle = (self.quant_min + self.quant_max + 1) // 2
        if qscheme is torch.per_tensor_symmetric and zero_point != middle:
            raise ConfigError(f"symmetric qparams have zero_point {middle} here, not {zero_point}", code="observer-zero-point")
        self.qscheme = qscheme
        self.register_buffer("scale", torch.tensor([scale], dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor([zero_point], dtype=torch.int32))
        self._given_ends = (self.quant_min, self.quant_max)

    def set_reduce_range(self, reduce: bool) -> None:
        """7 bits are the same range in half as many steps. The buffers stay as given, so that files fit on every CPU."""
        low, high = self._given_ends
        if high - low == 255:
            self.decided, self.halved = True, reduce
            self.quant_min, self.quant_max = halved_ends(low, high) if reduce else (low, high)

    @property
    def measures(self) -> bool:
        return False

    @property
    def observed(self) -> bool:
        return True

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        return halved(self.scale, self.zero_point) if self.halved else (self.scale, self.zero_point)

    def merge(self, other: ObserverBase) -> None:
        """Nothing to take in, but the qparams must be the same."""
        if not isinstance(other, FixedQParamsObserver) or other.qparams() != self.qparams():
            raise ConfigError("fixed qparams merge only with the same qparams", code="observer-merge")

    def extra_repr(self) -> str:
        return f"scale={self.scale.item():g}, zero_point={self.zero_point.item()}"


@register_observer
class PlaceholderObserver(ObserverBase):
    """Measures nothing; carries settings, e.g. float16 weights or a range that is computed at run time (`is_dynamic`)."""

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        custom_op_name: str = "",
        quant_min: int | None = None,
        quant_max: int | None = None,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        eps: float = torch.finfo(torch.float32).eps,
        is_dynamic: bool = False,
        reduce_range: bool | None = None,
    ) -> None:
        super().__init__(dtype, is_dynamic)
        self.custom_op = custom_op_name
        self.qscheme = qscheme
        self.eps = eps
        self.reduce_range = reduce_range
        self.quant_min, self.quant_max = quant_min, quant_max
        if not dtype.is_floating_point:
            self.quant_min, self.quant_max = quant_range(dtype, quant_min, quant_max, bool(reduce_range), explicit=True)

    def extra_repr(self) -> str:
        return f"dtype={self.dtype}, is_dynamic={self.is_dynamic}"


@register_observer
class RecordingObserver(ObserverBase):
    """Keeps a copy of each tensor it sees, for debugging."""

    def __init__(self, dtype: torch.dtype = torch.uint8, qscheme: torch.qscheme = torch.per_tensor_affine, **ignored: object) -> None:
        super().__init__(dtype)
        self.qscheme = qscheme
        self.tensor_val: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.tensor_val.append(x.detach().clone())
        return x

    def get_tensor_value(self) -> list[torch.Tensor]:
        return self.tensor_val


@register_observer
class NoopObserver(ObserverBase):
    """Measures nothing; carries a dtype."""

    def __init__(self, dtype: torch.dtype = torch.float16, custom_op_name: str = "") -> None:
        super().__init__(dtype)
        self.custom_op = custom_op_name


@register_observer
class ReuseInputObserver(ObserverBase):
    """The value has the qparams of its op's input (reshape and the like)."""

    def __init__(self) -> None:
        super().__init__(torch.uint8)
