"""nn.intrinsic.quantized.ConvAdd2d and ConvAddReLU2d: a convolution and the residual that is added to it.

One kernel on onednn, which has to be torch's current engine at each call; elsewhere the sum is computed in float, exact to half a
quantum (see backends/torch/kernels/epilogue.py).
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from qcompiler.errors import Where
from qcompiler.nn import intrinsic
from qcompiler.nn.quantized.conv import Conv2d
from qcompiler.nn.quantized.from_float import Parts
from qcompiler.nn.quantized.weighted import RELU


class ConvAdd2d(Conv2d):
    """`m(input, extra_input)` = conv(input) + extra_input, both quint8 with qparams of their own."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = intrinsic.ConvAdd2d
    _OP, _BASE_OP = "conv2d_add", "conv2d"
    _INPUTS = ("input", "extra_input")
    _WITH_RELU: ClassVar[bool] = False

    @classmethod
    def _expect(cls, mod: nn.Module, parts: Parts, where: Where) -> None:
        """The sum and the ReLU of the float module are attributes, which need not be modules."""
        fits = hasattr(mod, "add") and hasattr(mod, "relu") == cls._WITH_RELU
        super()._expect(mod, Parts(parts.base, parts.norm, () if fits else (mod,)), where)


class ConvAddReLU2d(ConvAdd2d):
    """`m(input, extra_input)` = relu(conv(input) + extra_input), both quint8 with qparams of their own."""

    _FLOAT_MODULE = intrinsic.ConvAddReLU2d
    _BOUNDS = RELU
    _WITH_RELU = True
