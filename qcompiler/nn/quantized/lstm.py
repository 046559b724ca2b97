"""nn.quantized.LSTM and LSTMCell: made from observed ones of nn.quantizable."""
# no `from __future__ import annotations`: torch.jit reads the annotations themselves

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qcompiler.nn import quantizable
from qcompiler.nn.float_classes import FloatClasses
from qcompiler.nn.quantized.parts import convert_parts, not_from_float


class LSTMCell(quantizable.LSTMCell):
    """nn.LSTMCell on quint8 tensors. A state of other qparams, or a float one, is brought to those of the calibrated states."""

    _FLOAT_MODULE: ClassVar[FloatClasses] = None
    _OBSERVED_MODULE: ClassVar[object] = quantizable.LSTMCell

    def initial_state(self, x: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """(h, c) of zeros, (batch, hidden), at the qparams that the states have."""
        zeros = torch.zeros([batch, self.hidden_size])
        return self.own_state(zeros, zeros)

    def own_state(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """One scale for all states: qnnpack's packed linears keep the first scale that they meet."""
        h = torch.quantize_per_tensor(h.dequantize(), self.ogate_cy.scale, self.ogate_cy.zero_point, torch.quint8)  # type: ignore[arg-type]
        out = self.fgate_cx_igate_cgate
        return h, torch.quantize_per_tensor(c.dequantize(), out.scale, out.zero_point, torch.quint8)  # type: ignore[arg-type]

    def _get_name(self) -> str:
        return "QuantizedLSTMCell"

    @classmethod
    def from_float(cls, other: object, use_precomputed_fake_quant: bool = False, split_gates: bool = False) -> Any:
        """Raises ConfigError: the way goes through an observed module."""
        raise not_from_float("LSTMCell")

    @classmethod
    def from_observed(cls, other: nn.Module) -> Any:
        """The int8 form of a calibrated quantizable.LSTMCell."""
        return convert_parts(other, {quantizable.LSTMCell: cls})


class LSTM(quantizable.LSTM):
    """nn.LSTM on quint8 tensors: result and states are quint8; (h, c) may be given as quint8 or float tensors."""

    _FLOAT_MODULE: ClassVar[FloatClasses] = None
    _OBSERVED_MODULE: ClassVar[object] = quantizable.LSTM

    def _get_name(self) -> str:
        return "QuantizedLSTM"

    @classmethod
    def from_float(cls, other: object, qconfig: object = None, split_gates: bool = False) -> Any:
        """Raises ConfigError: the way goes through an observed module."""
        raise not_from_float("LSTM")

    @classmethod
    def from_observed(cls, other: nn.Module) -> Any:
        """The int8 form of a calibrated quantizable.LSTM."""
        return convert_parts(other, {quantizable.LSTM: cls, quantizable.LSTMCell: LSTMCell})  # type: ignore[dict-item]
