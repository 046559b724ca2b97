"""Modules in parts that can be observed, by the names of torch.ao.nn.quantizable: float, equal to nn.LSTM and nn.MultiheadAttention.

float -> quantizable (from_float: observed) -> calibrate -> nn.quantized (from_observed).
"""

from qcompiler.nn.quantizable.attention import MultiheadAttention
from qcompiler.nn.quantizable.lstm import LSTM, LSTMCell

__all__ = ["LSTM", "LSTMCell", "MultiheadAttention"]
