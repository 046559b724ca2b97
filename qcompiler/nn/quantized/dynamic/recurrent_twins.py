"""What torch.jit.script compiles in place of recurrent modules: packs or float weights, and one call."""
# no `from __future__ import annotations`: torch.jit reads the annotations themselves

from typing import Any

import torch
from torch import nn

from qcompiler.backends.torch import recurrent
from qcompiler.ops import recurrent_float

Tensor = torch.Tensor


class Pack(nn.Module):
    """One packed cell, as a module of its own: TorchScript knows no lists of packs as attributes."""

    def __init__(self, pack: Any) -> None:
        super().__init__()
        self.pack = pack


def _packs(cells: list[Any]) -> nn.ModuleList:
    return nn.ModuleList([Pack(cell) for cell in cells])


class PackedLSTM(nn.Module):
    def __init__(self, cells: list[Any], hidden_size: int, bidirectional: bool, batch_first: bool, half: bool) -> None:
        super().__init__()
        self.cells, self.hidden_size, self.half = _packs(cells), hidden_size, half
        self.bidirectional, self.batch_first = bidirectional, batch_first

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        cells = [cell.pack for cell in self.cells]
        hidden = None if hx is None else hx[0]
        cell = None if hx is None else hx[1]
        return recurrent.lstm_dynamic(input, hidden, cell, cells, self.hidden_size, self.bidirectional, self.batch_first, self.half)


class FloatLSTM(nn.Module):
    def __init__(self, weights: list[Tensor], bias: bool, bidirectional: bool, batch_first: bool) -> None:
        super().__init__()
        self.weights, self.bias, self.bidirectional, self.batch_first = weights, bias, bidirectional, batch_first

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden = None if hx is None else hx[0]
        cell = None if hx is None else hx[1]
        return recurrent_float.lstm_float(input, hidden, cell, self.weights, self.bias, self.bidirectional, self.batch_first)


class PackedGRU(nn.Module):
    def __init__(self, cells: list[Any], hidden_size: int, bidirectional: bool, batch_first: bool) -> None:
        super().__init__()
        self.cells, self.hidden_size, self.bidirectional, self.batch_first = _packs(cells), hidden_size, bidirectional, batch_first

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        cells = [cell.pack for cell in self.cells]
        return recurrent.gru_dynamic(input, hx, cells, self.hidden_size, self.bidirectional, self.batch_first)


class FloatGRU(nn.Module):
    def __init__(self, weights: list[Tensor], bias: bool, bidirectional: bool, batch_first: bool) -> None:
        super().__init__()
        self.weights, self.bias, self.bidirectional, self.batch_first = weights, bias, bidirectional, batch_first

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return recurrent_float.gru_float(input, hx, self.weights, self.bias, self.bidirectional, self.batch_first)


class PackedLSTMCell(nn.Module):
    def __init__(self, cells: list[Any], hidden_size: int, half: bool) -> None:
        super().__init__()
        self.cell, self.hidden_size, self.half = cells[0], hidden_size, half

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        hidden = None if hx is None else hx[0]
        cell = None if hx is None else hx[1]
        return recurrent.lstm_cell_dynamic(input, hidden, cell, [self.cell], self.hidden_size, self.half)


class FloatLSTMCell(nn.Module):
    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        hidden = None if hx is None else hx[0]
        cell = None if hx is None else hx[1]
        return recurrent_float.lstm_cell_float(input, hidden, cell, self.weights)


class PackedGRUCell(nn.Module):
    def __init__(self, cells: list[Any], hidden_size: int) -> None:
        super().__init__()
        self.cell, self.hidden_size = cells[0], hidden_size

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return recurrent.gru_cell_dynamic(input, hx, [self.cell], self.hidden_size)


class FloatGRUCell(nn.Module):
    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return recurrent_float.gru_cell_float(input, hx, self.weights)


class PackedRNNCell(nn.Module):
    def __init__(self, pack_ih: Any, pack_hh: Any, hidden_size: int, relu: bool, reduce_range: bool, half: bool) -> None:
        super().__init__()
        self.pack_ih, self.pack_hh, self.hidden_size = pack_ih, pack_hh, hidden_size
        self.relu, self.reduce_range, self.half = relu, reduce_range, half

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        packs = self.pack_ih, self.pack_hh
        return recurrent.rnn_cell_dynamic(input, hx, packs[0], packs[1], self.hidden_size, self.relu, self.reduce_range, self.half)


class FloatRNNCell(nn.Module):
    def __init__(self, weights: list[Tensor], nonlinearity: str) -> None:
        super().__init__()
        self.weights, self.nonlinearity = weights, nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return recurrent_float.rnn_cell_float(input, hx, self.weights, self.nonlinearity)
