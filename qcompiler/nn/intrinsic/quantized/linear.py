"""nn.intrinsic.quantized.LinearReLU, LinearLeakyReLU and LinearTanh.

LinearReLU is one kernel on every engine. The others are on onednn, which has to be torch's current engine at each call; elsewhere
the activation runs on the float sums (see backends/torch/kernels/epilogue.py).
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn

from qcompiler.nn import intrinsic
from qcompiler.nn.intrinsic import qat
from qcompiler.nn.quantized.from_float import Parts
from qcompiler.nn.quantized.linear import Linear
from qcompiler.nn.quantized.weighted import RELU


class LinearReLU(Linear):
    """Linear and ReLU."""

    _FLOAT_MODULE = intrinsic.LinearReLU
    _QAT_MODULE = qat.LinearReLU
    _TAIL, _BOUNDS = (nn.ReLU,), RELU

    def __init__(self, in_features: int, out_features: int, bias: bool = True, dtype: torch.dtype = torch.qint8) -> None:
        """Weights of zero; `bias` False: none."""
        super().__init__(in_features, out_features, bias, dtype)


class LinearLeakyReLU(Linear):
    """Linear and LeakyReLU."""

    _FLOAT_MODULE = intrinsic.LinearLeakyReLU
    _TAIL = (nn.LeakyReLU,)
    _OP, _BASE_OP = "linear_leaky_relu", "linear"

    def __init__(
        self, in_features: int, out_features: int, negative_slope: float, bias: bool = True, dtype: torch.dtype = torch.qint8
    ) -> None:
        """Weights of zero; `bias` False: none."""
        self.__dict__["negative_slope"] = float(negative_slope)  # the constructor of the base builds with it
        super().__init__(in_features, out_features, bias, dtype)

    def _extra_attributes(self) -> dict[str, object]:
        return {"negative_slope": self.negative_slope}

    @classmethod
    def _like(cls, parts: Parts) -> Self:
        base: Any = parts.base
        slope: Any = parts.tail[0]
        return cls(base.in_features, base.out_features, slope.negative_slope, base.bias is not None or parts.norm is not None)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, negative_slope={self.negative_slope}"


class LinearTanh(Linear):
    """Linear and Tanh."""

    _FLOAT_MODULE = intrinsic.LinearTanh
    _TAIL = (nn.Tanh,)
    _OP, _BASE_OP = "linear_tanh", "linear"

    def __init__(self, in_features: int, out_features: int, bias: bool = True, dtype: torch.dtype = torch.qint8) -> None:
        """Weights of zero; `bias` False: none."""
        super().__init__(in_features, out_features, bias, dtype)
