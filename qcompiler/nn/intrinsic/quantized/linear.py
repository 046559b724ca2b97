"""nn.intrinsic.quantized.LinearReLU."""

from __future__ import annotations

import torch
from torch import nn

from qcompiler.nn import intrinsic
from qcompiler.nn.quantized.linear import Linear
from qcompiler.nn.quantized.weighted import RELU


class LinearReLU(Linear):
    """Linear and ReLU in one kernel."""

    _FLOAT_MODULE = intrinsic.LinearReLU
    _TAIL, _BOUNDS = (nn.ReLU,), RELU

    def __init__(self, in_features: int, out_features: int, bias: bool = True, dtype: torch.dtype = torch.qint8) -> None:
        """Weights of zero; `bias` False: none."""
        super().__init__(in_features, out_features, bias, dtype)
