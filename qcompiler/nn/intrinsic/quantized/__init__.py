"""Quantized modules of several ops: convolution and ReLU, and others, by the names of torch.nn.intrinsic.quantized."""

from qcompiler.nn.intrinsic.quantized.bn_relu import BNReLU2d, BNReLU3d
from qcompiler.nn.intrinsic.quantized.conv_add import ConvAdd2d, ConvAddReLU2d
from qcompiler.nn.intrinsic.quantized.conv_relu import ConvReLU1d, ConvReLU2d, ConvReLU3d
from qcompiler.nn.intrinsic.quantized.linear import LinearLeakyReLU, LinearReLU, LinearTanh

__all__ = [
    "BNReLU2d", "BNReLU3d", "ConvAdd2d", "ConvAddReLU2d", "ConvReLU1d", "ConvReLU2d", "ConvReLU3d", "LinearLeakyReLU", "LinearReLU",
    "LinearTanh",
]  # fmt: skip
