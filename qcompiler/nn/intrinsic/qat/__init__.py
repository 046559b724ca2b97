"""Modules of quantization-aware training that stand for several float ones."""

from qcompiler.nn.intrinsic.qat.conv import (
    ConvBn1d,
    ConvBn2d,
    ConvBn3d,
    ConvBnReLU1d,
    ConvBnReLU2d,
    ConvBnReLU3d,
    ConvReLU1d,
    ConvReLU2d,
    ConvReLU3d,
)
from qcompiler.nn.intrinsic.qat.conv_transpose import ConvTransposeBn1d, ConvTransposeBn2d, ConvTransposeBn3d
from qcompiler.nn.intrinsic.qat.linear import LinearBn1d, LinearReLU
from qcompiler.qat import freeze_bn_stats, update_bn_stats

__all__ = [
    "ConvBn1d",
    "ConvBn2d",
    "ConvBn3d",
    "ConvBnReLU1d",
    "ConvBnReLU2d",
    "ConvBnReLU3d",
    "ConvReLU1d",
    "ConvReLU2d",
    "ConvReLU3d",
    "ConvTransposeBn1d",
    "ConvTransposeBn2d",
    "ConvTransposeBn3d",
    "LinearBn1d",
    "LinearReLU",
    "freeze_bn_stats",
    "update_bn_stats",
]
