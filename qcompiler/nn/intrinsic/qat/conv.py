"""Convolutions with the BatchNorm and ReLU behind them as one module, with fake-quantized weights."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from qcompiler.nn import intrinsic
from qcompiler.nn.intrinsic.qat.batch_norm import BatchNormQAT, ReLUBehind
from qcompiler.nn.qat import Conv1d, Conv2d, Conv3d
from qcompiler.nn.qat.conv import ConvQAT


class ConvBnQAT(BatchNormQAT):
    """Base of convolution + BatchNorm: nn.Conv*'s arguments, BatchNorm's `eps` and `momentum`, then `freeze_bn` and `qconfig`."""

    _ARGUMENTS = ConvQAT._ARGUMENTS
    _NORM: ClassVar[type[nn.Module]]
    _conv_forward: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: object,
        stride: object = 1,
        padding: object = 0,
        dilation: object = 1,
        groups: int = 1,
        bias: bool | None = None,
        padding_mode: str = "zeros",
        eps: float = 1e-05,
        momentum: float | None = 0.1,
        freeze_bn: bool = False,
        qconfig: object = None,
        device: object = None,
        dtype: object = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bool(bias), padding_mode, device, dtype)
        self._start_batch_norm(self._NORM(out_channels, eps, momentum, device=device, dtype=dtype), freeze_bn, qconfig, device)

    def forward(self, input: Tensor) -> Tensor:
        return self._batch_norm(self._conv_forward, input)


class ConvBn1d(ConvBnQAT, nn.Conv1d):
    """nn.Conv1d and nn.BatchNorm1d, trained as one with a fake-quantized folded weight."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = intrinsic.ConvBn1d
    _NORM = nn.BatchNorm1d


class ConvBnReLU1d(ReLUBehind, ConvBn1d):
    """nn.Conv1d, nn.BatchNorm1d and nn.ReLU, trained as one with a fake-quantized folded weight."""

    _FLOAT_MODULE = intrinsic.ConvBnReLU1d
    _FOLDED_MODULE = intrinsic.ConvReLU1d


class ConvReLU1d(ReLUBehind, Conv1d):
    """nn.Conv1d and nn.ReLU with a fake-quantized weight."""

    _FLOAT_MODULE = intrinsic.ConvReLU1d
    _FOLDED_MODULE = intrinsic.ConvReLU1d


class ConvBn2d(ConvBnQAT, nn.Conv2d):
    """nn.Conv2d and nn.BatchNorm2d, trained as one with a fake-quantized folded weight."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = intrinsic.ConvBn2d
    _NORM = nn.BatchNorm2d


class ConvBnReLU2d(ReLUBehind, ConvBn2d):
    """nn.Conv2d, nn.BatchNorm2d and nn.ReLU, trained as one with a fake-quantized folded weight."""

    _FLOAT_MODULE = intrinsic.ConvBnReLU2d
    _FOLDED_MODULE = intrinsic.ConvReLU2d


class ConvReLU2d(ReLUBehind, Conv2d):
    """nn.Conv2d and nn.ReLU with a fake-quantized weight."""

    _FLOAT_MODULE = intrinsic.ConvReLU2d
    _FOLDED_MODULE = intrinsic.ConvReLU2d


class ConvBn3d(ConvBnQAT, nn.Conv3d):
    """nn.Conv3d and nn.BatchNorm3d, trained as one with a fake-quantized folded weight."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = intrinsic.ConvBn3d
    _NORM = nn.BatchNorm3d


class ConvBnReLU3d(ReLUBehind, ConvBn3d):
    """nn.Conv3d, nn.BatchNorm3d and nn.ReLU, trained as one with a fake-quantized folded weight."""

    _FLOAT_MODULE = intrinsic.ConvBnReLU3d
    _FOLDED_MODULE = intrinsic.ConvReLU3d


class ConvReLU3d(ReLUBehind, Conv3d):
    """nn.Conv3d and nn.ReLU with a fake-quantized weight."""

    _FLOAT_MODULE = intrinsic.ConvReLU3d
    _FOLDED_MODULE = intrinsic.ConvReLU3d
