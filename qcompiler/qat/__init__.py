"""Quantization-aware training: what the graph flow and the modules of `nn.qat` share."""

from qcompiler.qat.conv_bn import conv_bn

__all__ = ["conv_bn"]
