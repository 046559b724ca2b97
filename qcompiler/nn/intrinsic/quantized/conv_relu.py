"""nn.intrinsic.quantized.ConvReLU1d, 2d, 3d: one kernel each."""

from __future__ import annotations

from torch import nn

from qcompiler.nn import intrinsic
from qcompiler.nn.intrinsic import qat
from qcompiler.nn.quantized.conv import Conv1d, Conv2d, Conv3d
from qcompiler.nn.quantized.weighted import RELU


class ConvReLU1d(Conv1d):
    """Conv1d and ReLU."""

    _FLOAT_MODULE = intrinsic.ConvReLU1d
    _QAT_MODULE = (qat.ConvReLU1d, qat.ConvBnReLU1d)
    _TAIL, _BOUNDS = (nn.ReLU,), RELU


class ConvReLU2d(Conv2d):
    """Conv2d and ReLU."""

    _FLOAT_MODULE = intrinsic.ConvReLU2d
    _QAT_MODULE = (qat.ConvReLU2d, qat.ConvBnReLU2d)
    _TAIL, _BOUNDS = (nn.ReLU,), RELU


class ConvReLU3d(Conv3d):
    """Conv3d and ReLU."""

    _FLOAT_MODULE = intrinsic.ConvReLU3d
    _QAT_MODULE = (qat.ConvReLU3d, qat.ConvBnReLU3d)
    _TAIL, _BOUNDS = (nn.ReLU,), RELU
