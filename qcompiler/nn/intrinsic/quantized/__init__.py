"""Quantized modules of several ops: convolution and ReLU, and others, by the names of torch.nn.intrinsic.quantized."""

from qcompiler.nn.intrinsic.quantized.conv_relu import ConvReLU1d, ConvReLU2d, ConvReLU3d
from qcompiler.nn.intrinsic.quantized.linear import LinearReLU

__all__ = ["ConvReLU1d", "ConvReLU2d", "ConvReLU3d", "LinearReLU"]
