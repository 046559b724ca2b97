"""nn.intrinsic.quantized.BNReLU2d and BNReLU3d: one kernel each."""

from __future__ import annotations

from torch import nn

from qcompiler.nn import intrinsic
from qcompiler.nn.quantized.batchnorm import BatchNorm2d, BatchNorm3d
from qcompiler.nn.quantized.weighted import RELU


class BNReLU2d(BatchNorm2d):
    """BatchNorm2d and ReLU."""

    _FLOAT_MODULE = intrinsic.BNReLU2d
    _TAIL, _BOUNDS = (nn.ReLU,), RELU


class BNReLU3d(BatchNorm3d):
    """BatchNorm3d and ReLU."""

    _FLOAT_MODULE = intrinsic.BNReLU3d
    _TAIL, _BOUNDS = (nn.ReLU,), RELU
