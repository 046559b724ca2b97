"""Convolutions with int8 weights on float tensors.

torch.ao's of this name run quantized::conv*d_dynamic, whose results saturate: they have 8 bits on the scale of the input (errors of
half the output's range on every engine). These compute in float; the weight takes a quarter of the space in files (but those of
TorchScript, which hold what computes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _ntuple

from qcompiler.errors import ConfigError, InputError
from qcompiler.nn.quantized.dynamic.base import DynamicModule

SETTINGS = ("stride", "padding", "dilation", "groups", "padding_mode")


class _Conv(DynamicModule):
    _DIMS: ClassVar[int]
    _TRANSPOSED: ClassVar[bool] = False

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, bias: bool, dtype: Any, **settings: Any) -> None:
        super().__init__(torch.float16 if dtype is torch.float16 else torch.qint8)
        spread = _ntuple(self._DIMS)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, spread(kernel_size)
        for name, value in settings.items():
            many = name in ("stride", "dilation", "output_padding") or (name == "padding" and not isinstance(value, str))
            setattr(self, name, spread(value) if many else value)
        self.transposed = self._TRANSPOSED
        groups: int = settings["groups"]
        if in_channels % groups or out_channels % groups:
            raise ConfigError(f"{groups} groups do not divide {in_channels} and {out_channels} channels", code="groups")
        pair = (in_channels, out_channels // groups) if self._TRANSPOSED else (out_channels, in_channels // groups)
        zeros = torch.zeros(*pair, *self.kernel_size)
        if self._is_half:
            self._buffers["weight"] = zeros.half()
        else:
            self._hold_int8("weight", zeros.to(torch.int8), torch.tensor(1.0, dtype=torch.float64), torch.tensor(0))
        self._buffers["bias"] = torch.zeros(out_channels) if bias else None
        self.rebuild()

    def _packed(self) -> tuple[str, dict[str, Any]]:
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

    def _constructor_settings(self) -> dict[str, Any]:
        names = (*SETTINGS, "output_padding") if self._TRANSPOSED else SETTINGS
        return {name: getattr(self, name) for name in names}

    def weight(self) -> Tensor:
        """The weight as a qint8 tensor, or as float16."""
        return self._quantized("weight")

    def bias(self) -> Tensor | None:
        """The float bias."""
        return self._buffers["bias"]

    def set_weight_bias(self, w: Tensor, b: Tensor | None) -> None:
        """Takes a qint8 tensor (a float one where weights are float16) and a float bias."""
        self._hold_quantized("weight", w)
        self._buffers["bias"] = None if b is None else b.detach().float().clone()
        self.rebuild()

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Self:
        """The form with int8 (or float16) weights of a float convolution, as its `.qconfig` says."""
        del use_precomputed_fake_quant
        cls._expect_type(mod, cls._FLOAT_MODULE)
        qconfig, dtype = cls._qconfig_of(mod)
        float_module: Any = mod
        names = (*SETTINGS, "output_padding") if cls._TRANSPOSED else SETTINGS
        settings = {name: getattr(mod, name) for name in names}
        made = cls(float_module.in_channels, float_module.out_channels, float_module.kernel_size, bias=float_module.bias is not None,
                   dtype=dtype, **settings)  # fmt: skip
        made._hold("weight", float_module.weight, qconfig)
        made._buffers["bias"] = None if float_module.bias is None else float_module.bias.detach().float().clone()
        return made._adopt(mod, qconfig)

    def extra_repr(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self._constructor_settings().items() if value not in (1, "zeros"))
        bias = "" if self.bias() is not None else ", bias=False"
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, {settings}, {self._weight_repr('weight')}{bias}"


class _Straight(_Conv):
    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int | Sequence[int], stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0, dilation: int | Sequence[int] = 1, groups: int = 1, bias: bool = True,
        padding_mode: str = "zeros", device: Any = None, dtype: Any = None, reduce_range: bool = True,
    ) -> None:  # fmt: skip
        """Weights of zero. `device`, `reduce_range`: taken for torch's sake, without effect."""
        del device, reduce_range
        super().__init__(in_channels, out_channels, kernel_size, bias, dtype, stride=stride, padding=padding, dilation=dilation,
                         groups=groups, padding_mode=padding_mode)  # fmt: skip


class _Transposed(_Conv):
    _TRANSPOSED = True

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int | Sequence[int], stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0, output_padding: int | Sequence[int] = 0, groups: int = 1, bias: bool = True,
        dilation: int | Sequence[int] = 1, padding_mode: str = "zeros", device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        """Weights of zero. `device`: taken for torch's sake, without effect."""
        del device
        if padding_mode != "zeros":
            raise ConfigError("a transposed convolution pads with zeros", code="padding-mode")
        super().__init__(in_channels, out_channels, kernel_size, bias, dtype, stride=stride, padding=padding, dilation=dilation,
                         groups=groups, padding_mode=padding_mode, output_padding=output_padding)  # fmt: skip


class Conv1d(_Straight):
    """nn.Conv1d with an int8 weight, in float arithmetic."""

    _FLOAT_MODULE, _ROW, _DIMS = nn.Conv1d, "conv1d", 1


class Conv2d(_Straight):
    """nn.Conv2d with an int8 weight, in float arithmetic."""

    _FLOAT_MODULE, _ROW, _DIMS = nn.Conv2d, "conv2d", 2


class Conv3d(_Straight):
    """nn.Conv3d with an int8 weight, in float arithmetic."""

    _FLOAT_MODULE, _ROW, _DIMS = nn.Conv3d, "conv3d", 3


class ConvTranspose1d(_Transposed):
    """nn.ConvTranspose1d with an int8 weight, in float arithmetic."""

    _FLOAT_MODULE, _ROW, _DIMS = nn.ConvTranspose1d, "conv_transpose1d", 1


class ConvTranspose2d(_Transposed):
    """nn.ConvTranspose2d with an int8 weight, in float arithmetic."""

    _FLOAT_MODULE, _ROW, _DIMS = nn.ConvTranspose2d, "conv_transpose2d", 2


class ConvTranspose3d(_Transposed):
    """nn.ConvTranspose3d with an int8 weight, in float arithmetic."""

    _FLOAT_MODULE, _ROW, _DIMS = nn.ConvTranspose3d, "conv_transpose3d", 3
