"""Quantized modules: nn.Conv2d and others on quint8 tensors, by the names of torch.nn.quantized."""

from qcompiler.nn.quantized.base import QuantizedModule
from qcompiler.nn.quantized.batchnorm import BatchNorm2d, BatchNorm3d
from qcompiler.nn.quantized.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from qcompiler.nn.quantized.linear import Linear

__all__ = [
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Linear",
    "QuantizedModule",
]
