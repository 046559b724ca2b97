"""nn.quantized.Conv1d, 2d, 3d and ConvTranspose1d, 2d, 3d."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from torch import nn

from qcompiler.nn import qat
from qcompiler.nn.intrinsic import qat as trained
from qcompiler.nn.quantized.conv_settings import Size, check_padding, check_transposed, sizes, weight_shape
from qcompiler.nn.quantized.from_float import Parts
from qcompiler.nn.quantized.weighted import WeightedModule


class ConvNd(WeightedModule):
    """What all convolutions share: settings with the names of the float modules'."""

    _DIMS: ClassVar[int]
    transposed: ClassVar[bool] = False

    def _settings(self, in_channels: int, out_channels: int, kernel_size: Size, groups: int, bias: bool, **settings: object) -> None:
        """Called in place of __init__ by both kinds. Raises ConfigError for sizes that do not fit each other."""
        kernel = sizes(kernel_size, self._DIMS)
        shape = weight_shape(in_channels, out_channels, kernel, groups, self.transposed)
        WeightedModule.__init__(self, shape, out_channels if bias else None)
        self.in_channels, self.out_channels, self.kernel_size, self.groups = in_channels, out_channels, kernel, groups
        for name, value in settings.items():
            setattr(self, name, value if isinstance(value, str) else sizes(value, self._DIMS))
        self.rebuild()

    def _channels(self) -> tuple[int, int]:
        return -self._DIMS - 1, self.in_channels

    def _shown(self) -> dict[str, object]:
        """Settings with the value that need not be shown."""
        zeros, ones = (0,) * self._DIMS, (1,) * self._DIMS
        return {"padding": zeros, "dilation": ones, "output_padding": zeros, "groups": 1, "padding_mode": "zeros"}

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
        more = [f", {n}={getattr(self, n)}" for n, usual in self._shown().items() if getattr(self, n, usual) != usual]
        return text + super().extra_repr() + "".join(more) + ("" if self.bias() is not None else ", bias=False")


class Convolution(ConvNd):
    """A convolution of a quint8 tensor (N, C, *size) or (C, *size), int8 weight (O, C / groups, *kernel), float bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, padding: Size | str = 0,
                 dilation: Size = 1, groups: int = 1, bias: bool = True, padding_mode: str = "zeros",
                 device: object = None, dtype: object = None) -> None:  # fmt: skip
        """Weights of zero. `padding`: also 'same' or 'valid'. `device` and `dtype` are taken for torch's sake and not used."""
        del device, dtype
        check_padding(padding, padding_mode, stride)
        self._settings(in_channels, out_channels, kernel_size, groups, bias, stride=stride, padding=padding, dilation=dilation,
                       padding_mode=padding_mode)  # fmt: skip

    @classmethod
    def _like(cls, parts: Parts) -> Self:
        m: Any = parts.base
        bias = m.bias is not None or parts.norm is not None
        return cls(m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding, m.dilation, m.groups, bias, m.padding_mode)


class Transposed(ConvNd):
    """A transposed convolution of a quint8 tensor (N, C, *size) or (C, *size), int8 weight (C, O / groups, *kernel)."""

    transposed = True
    padding_mode = "zeros"

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, padding: Size = 0,
                 output_padding: Size = 0, groups: int = 1, bias: bool = True, dilation: Size = 1, padding_mode: str = "zeros",
                 device: object = None, dtype: object = None) -> None:  # fmt: skip
        """Weights of zero. `device` and `dtype` are taken for torch's sake and not used."""
        del device, dtype
        check_transposed(padding_mode)
        self._settings(in_channels, out_channels, kernel_size, groups, bias, stride=stride, padding=padding,
                       output_padding=output_padding, dilation=dilation)  # fmt: skip

    @classmethod
    def _like(cls, parts: Parts) -> Self:
        m: Any = parts.base
        bias = m.bias is not None or parts.norm is not None
        return cls(m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding, m.output_padding, m.groups, bias, m.dilation)


class Conv1d(Convolution):
    """nn.Conv1d on a quint8 tensor (N, C, L) or (C, L)."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.Conv1d
    _QAT_MODULE: ClassVar[object] = (qat.Conv1d, trained.ConvBn1d)
    _BASE = nn.Conv1d
    _OP, _DIMS, _RANKS = "conv1d", 1, (3, 2)


class Conv2d(Convolution):
    """nn.Conv2d on a quint8 tensor (N, C, H, W) or (C, H, W)."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.Conv2d
    _QAT_MODULE: ClassVar[object] = (qat.Conv2d, trained.ConvBn2d)
    _BASE = nn.Conv2d
    _OP, _DIMS, _RANKS = "conv2d", 2, (4, 3)


class Conv3d(Convolution):
    """nn.Conv3d on a quint8 tensor (N, C, D, H, W) or (C, D, H, W)."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.Conv3d
    _QAT_MODULE: ClassVar[object] = (qat.Conv3d, trained.ConvBn3d)
    _BASE = nn.Conv3d
    _OP, _DIMS, _RANKS = "conv3d", 3, (5, 4)


class ConvTranspose1d(Transposed):
    """nn.ConvTranspose1d on a quint8 tensor (N, C, L) or (C, L)."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.ConvTranspose1d
    _QAT_MODULE: ClassVar[object] = (qat.ConvTranspose1d, trained.ConvTransposeBn1d)
    _BASE = nn.ConvTranspose1d
    _OP, _DIMS, _RANKS = "conv_transpose1d", 1, (3, 2)


class ConvTranspose2d(Transposed):
    """nn.ConvTranspose2d on a quint8 tensor (N, C, H, W) or (C, H, W)."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.ConvTranspose2d
    _QAT_MODULE: ClassVar[object] = (qat.ConvTranspose2d, trained.ConvTransposeBn2d)
    _BASE = nn.ConvTranspose2d
    _OP, _DIMS, _RANKS = "conv_transpose2d", 2, (4, 3)


class ConvTranspose3d(Transposed):
    """nn.ConvTranspose3d on a quint8 tensor (N, C, D, H, W) or (C, D, H, W)."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.ConvTranspose3d
    _QAT_MODULE: ClassVar[object] = (qat.ConvTranspose3d, trained.ConvTransposeBn3d)
    _BASE = nn.ConvTranspose3d
    _OP, _DIMS, _RANKS = "conv_transpose3d", 3, (5, 4)
