"""Transposed convolutions with the BatchNorm behind them as one module, with fake-quantized weights."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from qcompiler.nn import intrinsic
from qcompiler.nn.intrinsic.qat.batch_norm import BatchNormQAT
from qcompiler.nn.qat.conv import ConvTransposeQAT, Transposed


class ConvTransposeBnQAT(BatchNormQAT, Transposed):
    """Base of transposed convolution + BatchNorm: nn.ConvTranspose*'s arguments, `eps`, `momentum`, `freeze_bn` and `qconfig`."""

    _ARGUMENTS = ConvTransposeQAT._ARGUMENTS
    _WEIGHT_AXIS = 1
    _NORM: ClassVar[type[nn.Module]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: object,
        stride: object = 1,
        padding: object = 0,
        output_padding: object = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: object = 1,
        padding_mode: str = "zeros",
        eps: float = 1e-05,
        momentum: float | None = 0.1,
        freeze_bn: bool = False,
        qconfig: object = None,
        device: object = None,
        dtype: object = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode,
                         device, dtype)  # fmt: skip
        self._start_batch_norm(self._NORM(out_channels, eps, momentum, device=device, dtype=dtype), freeze_bn, qconfig, device)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return self._batch_norm(partial(self._call, output_size=output_size), input)


class ConvTransposeBn1d(ConvTransposeBnQAT, nn.ConvTranspose1d):
    """nn.ConvTranspose1d and nn.BatchNorm1d, trained as one with a fake-quantized folded weight."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = intrinsic.ConvTransposeBn1d
    _NORM = nn.BatchNorm1d


class ConvTransposeBn2d(ConvTransposeBnQAT, nn.ConvTranspose2d):
    """nn.ConvTranspose2d and nn.BatchNorm2d, trained as one with a fake-quantized folded weight."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = intrinsic.ConvTransposeBn2d
    _NORM = nn.BatchNorm2d


class ConvTransposeBn3d(ConvTransposeBnQAT, nn.ConvTranspose3d):
    """nn.ConvTranspose3d and nn.BatchNorm3d, trained as one with a fake-quantized folded weight."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = intrinsic.ConvTransposeBn3d
    _NORM = nn.BatchNorm3d
