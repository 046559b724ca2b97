"""What modules on quantized weights compute, as functions of the module that Python runs and TorchScript compiles.

torch.jit.script compiles the `__wrapped__` of an instance's forward, with the attributes of the module; `with_script_form` makes such
a forward. (With `__prepare_scriptable__` torch would change the model around the module while scripting it.)
"""
# no `from __future__ import annotations`: torch.jit reads the annotations themselves

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from qcompiler.ambient import call_is_plain, plain_call, widened
from qcompiler.backends.torch.runtime import functions, recurrent, tables
from qcompiler.ops import recurrent_float

Tensor = torch.Tensor


def with_script_form(script: Callable[..., Any]) -> Callable[..., object]:
    """A forward that checks its inputs (`module._infer`) and that TorchScript takes for `script`."""

    def forward(self: Any, *inputs: Any, **named: Any) -> object:
        if call_is_plain():
            return self._infer(*inputs, **named)
        inputs, named = widened((inputs, named))
        with plain_call():
            return self._infer(*inputs, **named)

    forward.__wrapped__ = script  # type: ignore[attr-defined]
    return forward


def packed_linear(self, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    rows = functions.of_width(x.unsqueeze(0) if x.dim() == 1 else x, self.in_features)
    if self._half:
        y = torch.ops.quantized.linear_dynamic_fp16(rows, self._pack)
    else:
        y = torch.ops.quantized.linear_dynamic(rows, self._pack, self._reduce)
    y = torch.relu(y) if self._relu else y
    if x.dim() == 1:
        return y.squeeze(0)
    return y if y.dim() == x.dim() else y.reshape(x.shape[:-1] + y.shape[-1:])  # onednn loses leading dimensions of empty batches


def float_linear(self, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    y = F.linear(x, self._weight, self._bias)
    return torch.relu(y) if self._relu else y


def conv1d(self, input: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    x = F.pad(input, self._sides, mode=self.padding_mode) if self._pads else input
    return F.conv1d(x, self._weight, self._bias, self._stride, self._padding, self._dilation, self.groups)


def conv2d(self, input: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    x = F.pad(input, self._sides, mode=self.padding_mode) if self._pads else input
    return F.conv2d(x, self._weight, self._bias, self._stride, self._padding, self._dilation, self.groups)


def conv3d(self, input: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    x = F.pad(input, self._sides, mode=self.padding_mode) if self._pads else input
    return F.conv3d(x, self._weight, self._bias, self._stride, self._padding, self._dilation, self.groups)


def conv_transpose1d(self, input: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    rest = self._output_padding
    return F.conv_transpose1d(input, self._weight, self._bias, self._stride, self._padding, rest, self.groups, self._dilation)


def conv_transpose2d(self, input: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    rest = self._output_padding
    return F.conv_transpose2d(input, self._weight, self._bias, self._stride, self._padding, rest, self.groups, self._dilation)


def conv_transpose3d(self, input: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    rest = self._output_padding
    return F.conv_transpose3d(input, self._weight, self._bias, self._stride, self._padding, rest, self.groups, self._dilation)


def packed_lstm(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # type: ignore[no-untyped-def]
    hidden = None if hx is None else hx[0]
    cell = None if hx is None else hx[1]
    return recurrent.lstm_dynamic(input, hidden, cell, self._packs, self.hidden_size, self.bidirectional, self.batch_first, self._half,
                                  self.input_size)  # fmt: skip


def float_lstm(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # type: ignore[no-untyped-def]
    hidden = None if hx is None else hx[0]
    cell = None if hx is None else hx[1]
    return recurrent_float.lstm_float(input, hidden, cell, self._weights, self.bias, self.bidirectional, self.batch_first)


def packed_gru(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    return recurrent.gru_dynamic(input, hx, self._packs, self.hidden_size, self.bidirectional, self.batch_first, self.input_size)


def float_gru(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    return recurrent_float.gru_float(input, hx, self._weights, self.bias, self.bidirectional, self.batch_first)


def packed_lstm_cell(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    hidden = None if hx is None else hx[0]
    cell = None if hx is None else hx[1]
    return recurrent.lstm_cell_dynamic(input, hidden, cell, self._packs, self.hidden_size, self._half, self.input_size)


def float_lstm_cell(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    hidden = None if hx is None else hx[0]
    cell = None if hx is None else hx[1]
    return recurrent_float.lstm_cell_float(input, hidden, cell, self._weights)


def packed_gru_cell(self, input: Tensor, hx: Tensor | None = None) -> Tensor:  # type: ignore[no-untyped-def]
    return recurrent.gru_cell_dynamic(input, hx, self._packs, self.hidden_size, self.input_size)


def float_gru_cell(self, input: Tensor, hx: Tensor | None = None) -> Tensor:  # type: ignore[no-untyped-def]
    return recurrent_float.gru_cell_float(input, hx, self._weights)


def packed_rnn_cell(self, input: Tensor, hx: Tensor | None = None) -> Tensor:  # type: ignore[no-untyped-def]
    packs = self._packs
    return recurrent.rnn_cell_dynamic(input, hx, packs[0], packs[1], self.hidden_size, self._relu, self._reduce, self._half,
                                      self.input_size)  # fmt: skip


def float_rnn_cell(self, input: Tensor, hx: Tensor | None = None) -> Tensor:  # type: ignore[no-untyped-def]
    return recurrent_float.rnn_cell_float(input, hx, self._weights, self.nonlinearity)


def embedding(self, indices: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    return tables.embedding_rows(self._rows, indices, self.embedding_dim, self._bits)


def embedding_bag(self, indices: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:  # type: ignore[no-untyped-def]
    last, padding = self.include_last_offset, self.padding_idx
    columns, mode = self.embedding_dim, self.mode
    return tables.embedding_bag_rows(self._rows, indices, offsets, per_sample_weights, columns, self._bits, mode, last, padding)


FORMS = {
    script.__name__: with_script_form(script)
    for script in (
        packed_linear, float_linear, conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d, packed_lstm, float_lstm,
        packed_gru, float_gru, packed_lstm_cell, float_lstm_cell, packed_gru_cell, float_gru_cell, packed_rnn_cell, float_rnn_cell,
        embedding, embedding_bag,
    )
}  # fmt: skip
