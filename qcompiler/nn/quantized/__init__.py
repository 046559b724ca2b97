"""Quantized modules and functions: nn.Conv2d and others on quint8 tensors, by the names of torch.nn.quantized."""

from qcompiler.nn.quantized import functional
from qcompiler.nn.quantized.activation import ELU, Activation, Hardswish, LeakyReLU, PReLU, ReLU, ReLU6, Sigmoid, Softmax
from qcompiler.nn.quantized.attention import MultiheadAttention
from qcompiler.nn.quantized.base import QuantizedModule
from qcompiler.nn.quantized.batchnorm import BatchNorm2d, BatchNorm3d
from qcompiler.nn.quantized.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from qcompiler.nn.quantized.dropout import Dropout
from qcompiler.nn.quantized.embedding import Embedding, EmbeddingBag
from qcompiler.nn.quantized.functional_modules import FloatFunctional, FXFloatFunctional, QFunctional
from qcompiler.nn.quantized.linear import Linear
from qcompiler.nn.quantized.lstm import LSTM, LSTMCell
from qcompiler.nn.quantized.normalization import GroupNorm, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d, LayerNorm
from qcompiler.nn.quantized.pooling import MaxPool2d
from qcompiler.nn.quantized.quantize import DeQuantize, Quantize

__all__ = [
    "ELU",
    "LSTM",
    "Activation",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "DeQuantize",
    "Dropout",
    "Embedding",
    "EmbeddingBag",
    "FXFloatFunctional",
    "FloatFunctional",
    "GroupNorm",
    "Hardswish",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LSTMCell",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "MaxPool2d",
    "MultiheadAttention",
    "PReLU",
    "QFunctional",
    "Quantize",
    "QuantizedModule",
    "ReLU",
    "ReLU6",
    "Sigmoid",
    "Softmax",
    "functional",
]
