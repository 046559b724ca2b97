"""Modules on float tensors whose weights are int8 or float16: no calibration, activations are quantized as they come."""

from qcompiler.nn.quantized.dynamic.base import DynamicModule
from qcompiler.nn.quantized.dynamic.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from qcompiler.nn.quantized.dynamic.linear import Linear
from qcompiler.nn.quantized.dynamic.rnn import GRU, LSTM, GRUCell, LSTMCell, RNNCell

__all__ = [
    "GRU", "LSTM", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "DynamicModule", "GRUCell",
    "LSTMCell", "Linear", "RNNCell",
]  # fmt: skip
