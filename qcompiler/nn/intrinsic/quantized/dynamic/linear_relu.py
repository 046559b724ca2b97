"""nn.intrinsic.quantized.dynamic.LinearReLU."""

from __future__ import annotations

from torch import nn

from qcompiler.nn import intrinsic
from qcompiler.nn.quantized.dynamic import Linear


class LinearReLU(Linear):
    """relu(x W^T + b) with dynamically rounded activations; see nn.quantized.dynamic.Linear."""

    _FLOAT_MODULE = intrinsic.LinearReLU
    _TAIL = (nn.ReLU,)
    _RELU = True

    def _get_name(self) -> str:
        return "DynamicQuantizedLinearReLU"
