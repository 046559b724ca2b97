"""Convolutions with int8 weights on float tensors.

torch.ao's of this name run quantized::conv*d_dynamic, whose results saturate: they have 8 bits on the scale of the input (errors of
half the output's range on every engine). These compute in float; the weight takes a quarter of the space in files (but those of
TorchScript, which hold what computes).
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from qcompiler.errors import InputError
from qcompiler.nn.quantized.conv_settings import Size, check_padding, check_transposed, sizes, weight_shape
from qcompiler.nn.quantized.dynamic.weighted import OneWeight

SETTINGS = ("stride", "padding", "dilation", "groups", "padding_mode")


class _Conv(OneWeight):
    _DIMS: ClassVar[int]
    _TRANSPOSED: ClassVar[bool] = False

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, bias: bool, dtype: Any, **settings: Any) -> None:
        super().__init__(torch.float16 if dtype is torch.float16 else torch.qint8)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, sizes(kernel_size, self._DIMS)
        for name, value in settings.items():
            one = name in ("groups", "padding_mode") or isinstance(value, str)
            setattr(self, name, value if one else sizes(value, self._DIMS))
        self.transposed = self._TRANSPOSED
        shape = weight_shape(in_channels, out_channels, self.kernel_size, settings["groups"], self._TRANSPOSED)
        self._start(shape, out_channels if bias else None)

    def _packed(self) -> tuple[str, dict[str, object]]:
        settings: Any = {name: getattr(self, name) for name in ("stride", "padding", "dilation")}
        sides: list[int] = []
        if self.padding_mode != "zeros" and not isinstance(settings["padding"], str):
            sides = [p for size in reversed(settings["padding"]) for p in (size, size)]
            settings["padding"] = (0,) * self._DIMS
        lists = {f"_{name}": value if isinstance(value, str) else list(value) for name, value in settings.items()}
        rest = {"_output_padding": list(self.output_padding)} if self._TRANSPOSED else {"_sides": sides or [0], "_pads": bool(sides)}  # type: ignore[arg-type]
        return self._ROW, {"_weight": self._float("weight"), "_bias": self.bias(), **lists, **rest}

    def _infer(self, input: Tensor) -> Tensor:
        self._check("input", input)
        if input.dim() not in (self._DIMS + 1, self._DIMS + 2):
            raise InputError(f"{self._get_name()} takes an input of {self._DIMS + 2} dimensions, or {self._DIMS + 1} without a batch, got "
                             f"shape {tuple(input.shape)}", code="input-rank", where=self._where())  # fmt: skip
        return self._run(input)  # type: ignore[no-any-return]

    @classmethod
    def _setting_names(cls) -> tuple[str, ...]:
        return (*SETTINGS, "output_padding") if cls._TRANSPOSED else SETTINGS

    @classmethod
    def _like(cls, base: Any, dtype: torch.dtype) -> Self:
        settings = {name: getattr(base, name) for name in cls._setting_names()}
        return cls(base.in_channels, base.out_channels, base.kernel_size, bias=base.bias is not None, dtype=dtype, **settings)

    def extra_repr(self) -> str:
        values = {name: getattr(self, name) for name in self._setting_names()}
        settings = ", ".join(f"{name}={value}" for name, value in values.items() if value not in (1, "zeros"))
        bias = "" if self.bias() is not None else ", bias=False"
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, {settings}, {self._weight_repr('weight')}{bias}"


class _Straight(_Conv):
    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1,
        padding: Size | str = 0, dilation: Size = 1, groups: int = 1, bias: bool = True,
        padding_mode: str = "zeros", device: object = None, dtype: object = None, reduce_range: bool = True,
    ) -> None:  # fmt: skip
        """Weights of zero. `device`, `reduce_range`: taken for torch's sake, without effect."""
        del device, reduce_range
        check_padding(padding, padding_mode, stride)
        super().__init__(in_channels, out_channels, kernel_size, bias, dtype, stride=stride, padding=padding, dilation=dilation,
                         groups=groups, padding_mode=padding_mode)  # fmt: skip


class _Transposed(_Conv):
    _TRANSPOSED = True

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1,
        padding: Size = 0, output_padding: Size = 0, groups: int = 1, bias: bool = True,
        dilation: Size = 1, padding_mode: str = "zeros", device: object = None, dtype: object = None,
    ) -> None:  # fmt: skip
        """Weights of zero. `device`: taken for torch's sake, without effect."""
        del device
        check_transposed(padding_mode)
        super().__init__(in_channels, out_channels, kernel_size, bias, dtype, stride=stride, padding=padding, dilation=dilation,
                         groups=groups, padding_mode=padding_mode, output_padding=output_padding)  # fmt: skip


class Conv1d(_Straight):
    """nn.Conv1d with an int8 weight, in float arithmetic."""

    _FLOAT_MODULE, _BASE, _ROW, _DIMS = nn.Conv1d, nn.Conv1d, "conv1d", 1


class Conv2d(_Straight):
    """nn.Conv2d with an int8 weight, in float arithmetic."""

    _FLOAT_MODULE, _BASE, _ROW, _DIMS = nn.Conv2d, nn.Conv2d, "conv2d", 2


class Conv3d(_Straight):
    """nn.Conv3d with an int8 weight, in float arithmetic."""

    _FLOAT_MODULE, _BASE, _ROW, _DIMS = nn.Conv3d, nn.Conv3d, "conv3d", 3


class ConvTranspose1d(_Transposed):
    """nn.ConvTranspose1d with an int8 weight, in float arithmetic."""

    _FLOAT_MODULE, _BASE, _ROW, _DIMS = nn.ConvTranspose1d, nn.ConvTranspose1d, "conv_transpose1d", 1


class ConvTranspose2d(_Transposed):
    """nn.ConvTranspose2d with an int8 weight, in float arithmetic."""

    _FLOAT_MODULE, _BASE, _ROW, _DIMS = nn.ConvTranspose2d, nn.ConvTranspose2d, "conv_transpose2d", 2


class ConvTranspose3d(_Transposed):
    """nn.ConvTranspose3d with an int8 weight, in float arithmetic."""

    _FLOAT_MODULE, _BASE, _ROW, _DIMS = nn.ConvTranspose3d, nn.ConvTranspose3d, "conv_transpose3d", 3
