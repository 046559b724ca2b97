"""Convolutions and transposed convolutions with fake-quantized weights."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from qcompiler.nn.qat.base import QATModule


class ConvQAT(QATModule):
    """Base of the convolutions: nn.Conv*'s arguments, then `qconfig`."""

    _ARGUMENTS = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    bias: Any
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
        bias: bool = True,
        padding_mode: str = "zeros",
        qconfig: object = None,
        device: object = None,
        dtype: object = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype)
        self._fake_quantize_weight(qconfig, device)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight_fake_quant(self.weight), self.bias)  # type: ignore[no-any-return]


class Transposed(QATModule):
    """How transposed convolutions are called, and where their output channels are."""

    _CHANNEL_AXIS = 1
    groups: int
    _output_padding: Any

    def _call(self, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None = None) -> Tensor:
        own: Any = self
        dims = self.weight.dim() - 2
        extra = self._output_padding(x, output_size, own.stride, own.padding, own.kernel_size, dims, own.dilation)
        run = (nn.functional.conv_transpose1d, nn.functional.conv_transpose2d, nn.functional.conv_transpose3d)[dims - 1]
        return run(x, weight, bias, own.stride, own.padding, extra, own.groups, own.dilation)  # type: ignore[no-any-return]


class ConvTransposeQAT(Transposed):
    """Base of the transposed convolutions: nn.ConvTranspose*'s arguments, then `qconfig`.

    Per-channel weights become one scale where the engine that is set (torch.backends.quantized.engine) has no kernel for them.
    """

    _ARGUMENTS = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding", "groups", "dilation", "padding_mode")
    bias: Any

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
        qconfig: object = None,
        device: object = None,
        dtype: object = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode,
                         device, dtype)  # fmt: skip
        self._fake_quantize_weight(qconfig, device)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return self._call(input, self.weight_fake_quant(self.weight), self.bias, output_size)


class Conv1d(ConvQAT, nn.Conv1d):
    """nn.Conv1d with a fake-quantized weight."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.Conv1d


class Conv2d(ConvQAT, nn.Conv2d):
    """nn.Conv2d with a fake-quantized weight."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.Conv2d


class Conv3d(ConvQAT, nn.Conv3d):
    """nn.Conv3d with a fake-quantized weight."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.Conv3d


class ConvTranspose1d(ConvTransposeQAT, nn.ConvTranspose1d):
    """nn.ConvTranspose1d with a fake-quantized weight."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.ConvTranspose1d


class ConvTranspose2d(ConvTransposeQAT, nn.ConvTranspose2d):
    """nn.ConvTranspose2d with a fake-quantized weight."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.ConvTranspose2d


class ConvTranspose3d(ConvTransposeQAT, nn.ConvTranspose3d):
    """nn.ConvTranspose3d with a fake-quantized weight."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.ConvTranspose3d
