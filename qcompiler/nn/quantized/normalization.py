"""nn.quantized.LayerNorm, GroupNorm and InstanceNorm1d, 2d, 3d: statistics of the input itself, computed in float."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from qcompiler.nn.quantized.row import RowModule, as_float


class Norm(RowModule):
    """What all have: float `weight` and `bias` (or None), `eps`."""

    _TENSORS = ("weight", "bias")

    def _take(self, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
        self.eps = eps
        self._holds(weight=as_float(weight), bias=as_float(bias))


class LayerNorm(Norm):
    """Normalizes over the last dimensions, `normalized_shape`."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.LayerNorm
    _OP = "layer_norm"

    def __init__(self, normalized_shape: int | Sequence[int], weight: Tensor | None, bias: Tensor | None, scale: float, zero_point: int,
                 eps: float = 1e-5, elementwise_affine: bool = True, device: object = None, dtype: object = None) -> None:  # fmt: skip
        """`scale`, `zero_point`: of the result. `device` and `dtype` are taken for torch's sake and not used."""
        del device, dtype
        super().__init__(scale, zero_point)
        self.normalized_shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.elementwise_affine = elementwise_affine
        self._take(weight, bias, eps)
        self.rebuild()

    @classmethod
    def _like(cls, mod: Any, scale: float, zero_point: int) -> Self:
        return cls(mod.normalized_shape, mod.weight, mod.bias, scale, zero_point, mod.eps, mod.elementwise_affine)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, {super().extra_repr()}"


class GroupNorm(Norm):
    """Normalizes each of `num_groups` groups of channels of (N, C, ...)."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.GroupNorm
    _OP = "group_norm"
    _RANKS, _RANK_OR_MORE = (3, 2), True  # int8 kernels take 3 and more

    def __init__(self, num_groups: int, num_channels: int, weight: Tensor | None, bias: Tensor | None, scale: float, zero_point: int,
                 eps: float = 1e-5, affine: bool = True, device: object = None, dtype: object = None) -> None:  # fmt: skip
        """`scale`, `zero_point`: of the result. `device` and `dtype` are taken for torch's sake and not used."""
        del device, dtype
        super().__init__(scale, zero_point)
        self.num_groups, self.num_channels, self.affine = num_groups, num_channels, affine
        self._take(weight, bias, eps)
        self.rebuild()

    @classmethod
    def _like(cls, mod: Any, scale: float, zero_point: int) -> Self:
        return cls(mod.num_groups, mod.num_channels, mod.weight, mod.bias, scale, zero_point, mod.eps, mod.affine)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, {super().extra_repr()}"


class InstanceNorm(Norm):
    """Normalizes each channel of each sample; an input without batch dimension counts as one sample."""

    _OP = "instance_norm"
    _BATCHED = True

    def __init__(self, num_features: int, weight: Tensor | None, bias: Tensor | None, scale: float, zero_point: int, eps: float = 1e-5,
                 momentum: float = 0.1, affine: bool = False, track_running_stats: bool = False, device: object = None,
                 dtype: object = None) -> None:  # fmt: skip
        """`scale`, `zero_point`: of the result. The last four are taken for torch's sake and not used."""
        del device, dtype
        super().__init__(scale, zero_point)
        self.num_features, self.momentum, self.affine, self.track_running_stats = num_features, momentum, affine, track_running_stats
        self._take(weight, bias, eps)
        self.rebuild()

    @classmethod
    def _like(cls, mod: Any, scale: float, zero_point: int) -> Self:
        return cls(mod.num_features, mod.weight, mod.bias, scale, zero_point, mod.eps, mod.momentum, mod.affine, mod.track_running_stats)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}, {super().extra_repr()}"


class InstanceNorm1d(InstanceNorm):
    """nn.InstanceNorm1d on a quint8 tensor (N, C, L) or (C, L)."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.InstanceNorm1d
    _RANKS = (3, 2)


class InstanceNorm2d(InstanceNorm):
    """nn.InstanceNorm2d on a quint8 tensor (N, C, H, W) or (C, H, W)."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.InstanceNorm2d
    _RANKS = (4, 3)


class InstanceNorm3d(InstanceNorm):
    """nn.InstanceNorm3d on a quint8 tensor (N, C, D, H, W) or (C, D, H, W)."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.InstanceNorm3d
    _RANKS = (5, 4)
