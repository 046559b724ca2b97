"""Quantized modules and functions: nn.Conv2d and others on quint8 tensors, by the names of torch.nn.quantized."""

from qcompiler.nn.quantized import functional
from qcompiler.nn.quantized.base import QuantizedModule
from qcompiler.nn.quantized.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from qcompiler.nn.quantized.functional_modules import FloatFunctional, FXFloatFunctional, QFunctional
from qcompiler.nn.quantized.linear import Linear
from qcompiler.nn.quantized.quantize import DeQuantize, Quantize

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "DeQuantize",
    "FXFloatFunctional",
    "FloatFunctional",
    "Linear",
    "QFunctional",
    "Quantize",
    "QuantizedModule",
    "functional",
]
