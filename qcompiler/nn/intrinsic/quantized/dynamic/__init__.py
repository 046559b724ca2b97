"""Dynamic modules of several ops, by the names of torch.nn.intrinsic.quantized.dynamic."""

from qcompiler.nn.intrinsic.quantized.dynamic.linear_relu import LinearReLU

__all__ = ["LinearReLU"]
