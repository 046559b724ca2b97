"""Recurrent layers and cells as functions of flat weights: their float semantics, and the arithmetic of dynamic quantization.

One cell of a layer and direction has w_ih (G*H, I), w_hh (G*H, H), b_ih and b_hh (G*H,), with G gates: 4 (i, f, g, o) of an
LSTM, 3 (r, z, n) of a GRU, 1 of a plain RNN. Lists hold [w_ih, w_hh] of each cell, and [b_ih, b_hh]: layer by layer, in each
the forward direction first. Everything runs in the dtype of the arguments, so float64 gives the reference.

With `activation_range=(quant_min, quant_max)` the input and the hidden state of every product with a weight are rounded to that
many steps of their own range: the input of a layer as a whole (all time steps), the hidden state at each step. That is what
torch's kernels do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.ops.recurrent_float import gru_float, gru_packed_float, lstm_float, lstm_packed_float
from qcompiler.ops.reference import dynamic_quantize_dequantize

Range = tuple[int, int] | None
State = tuple[Tensor, ...]  # hidden state (N, H), for an LSTM also the cell state
Step = Callable[[Tensor, Tensor, State], State]  # products with the input and with the hidden state -> the next state
Orders = tuple[Tensor | None, Tensor | None]  # of the batch of a packed sequence: sorted, and back


def product(x: Tensor, weight: Tensor, bias: Tensor | None, activation_range: Range) -> Tensor:
    """x @ weight.T + bias, with x rounded to its own range where there is one."""
    return F.linear(x if activation_range is None else dynamic_quantize_dequantize(x, *activation_range), weight, bias)


def lstm_step(ih: Tensor, hh: Tensor, state: State) -> State:
    i, f, g, o = (ih + hh).chunk(4, -1)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def gru_step(ih: Tensor, hh: Tensor, state: State) -> State:
    (r, z, n), (hr, hz, hn) = ih.chunk(3, -1), hh.chunk(3, -1)
    update = torch.sigmoid(z + hz)
    new = torch.tanh(n + torch.sigmoid(r + hr) * hn)
    return (new + update * (state[0] - new),)


def rnn_step(ih: Tensor, hh: Tensor, state: State) -> State:
    return (torch.tanh(ih + hh),)


def rnn_relu_step(ih: Tensor, hh: Tensor, state: State) -> State:
    return (torch.relu(ih + hh),)


STEPS: dict[str, Step] = {"tanh": rnn_step, "relu": rnn_relu_step}


@dataclass(frozen=True)
class _Layers:
    """The layers of one recurrent module, as steps on rows: `data` (sum of sizes, I), `sizes` falling numbers of sequences at each step."""

    step: Step
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    bidirectional: bool
    rounding: Range

    def direction(self, data: Tensor, sizes: Sequence[int], state: State, k: int, reverse: bool) -> tuple[Tensor, State]:
        """One direction of one layer, the k-th cell."""
        bias = (self.biases[2 * k], self.biases[2 * k + 1]) if self.biases else (None, None)
        ih = product(data, self.weights[2 * k], bias[0], self.rounding).split(list(sizes))
        outputs: list[Tensor] = []
        order = reversed(range(len(sizes))) if reverse else range(len(sizes))
        for t in order:
            n = sizes[t]
            hh = product(state[0][:n], self.weights[2 * k + 1], bias[1], self.rounding)
            new = self.step(ih[t], hh, tuple(s[:n] for s in state))
            state = tuple(torch.cat([a, b[n:]]) for a, b in zip(new, state, strict=True))
            outputs.append(new[0])
        return torch.cat(outputs[::-1] if reverse else outputs), state

    def run(self, data: Tensor, sizes: Sequence[int], state: State) -> tuple[Tensor, State]:
        """All layers; `state` holds (layers * directions, N, H) tensors."""
        directions, ends = (2 if self.bidirectional else 1), []
        for first in range(0, len(self.weights) // 2, directions):
            outputs = []
            for k in range(first, first + directions):
                output, end = self.direction(data, sizes, tuple(s[k] for s in state), k, k > first)
                outputs.append(output)
                ends.append(end)
            data = torch.cat(outputs, -1)
        return data, tuple(torch.stack(parts) for parts in zip(*ends, strict=True))

    def sequence(self, x: Tensor, states: Sequence[Tensor | None], batch_first: bool) -> tuple[Tensor, State]:
        """Batched or unbatched input of full length: reduced to packed rows of equal sizes."""
        unbatched = x.dim() == 2
        rows = x.unsqueeze(1) if unbatched else x.transpose(0, 1) if batch_first else x
        steps, batch = rows.shape[:2]
        given = tuple(_zeros(x, batch, self.weights) if s is None else s.unsqueeze(1) if unbatched else s for s in states)
        data, end = self.run(rows.flatten(0, 1), [batch] * steps, given)
        output = data.unflatten(0, (steps, batch))
        if unbatched:
            return output.squeeze(1), tuple(s.squeeze(1) for s in end)
        return (output.transpose(0, 1) if batch_first else output), end

    def packed(self, data: Tensor, batch_sizes: Tensor, orders: Orders, states: Sequence[Tensor | None]) -> tuple[Tensor, State]:
        """On the fields of a packed sequence. States come and go in the order of the caller's batch."""
        sizes = batch_sizes.tolist()
        given = tuple(_zeros(data, sizes[0], self.weights) if s is None else _permuted(s, orders[0]) for s in states)
        output, end = self.run(data, sizes, given)
        return output, tuple(_permuted(s, orders[1]) for s in end)


def _zeros(x: Tensor, batch: int, weights: Sequence[Tensor]) -> Tensor:
    return torch.zeros(len(weights) // 2, batch, weights[1].shape[1], dtype=x.dtype, device=x.device)


def interleaved(weights: Sequence[object], biases: Sequence[object]) -> list[Any]:
    """[w_ih, w_hh, b_ih, b_hh] of each cell, the order of torch.lstm."""
    pairs = range(0, len(weights), 2)
    return [t for k in pairs for t in (*weights[k : k + 2], *biases[k : k + 2])]


def lstm(x: Tensor, hidden: Tensor | None, cell: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor] = (), *,
         batch_first: bool = False, bidirectional: bool = False,
         activation_range: Range = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
    """nn.LSTM in eval mode: x (T, N, I), or (N, T, I), or (T, I) -> (output, (hidden, cell)); states default to zeros."""
    if activation_range is None:
        return lstm_float(x, hidden, cell, interleaved(weights, biases), bool(biases), bidirectional, batch_first)
    output, (hidden, cell) = _Layers(lstm_step, weights, biases, bidirectional, activation_range).sequence(x, (hidden, cell), batch_first)
    return output, (hidden, cell)


def gru(x: Tensor, hidden: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor] = (), *, batch_first: bool = False,
        bidirectional: bool = False, activation_range: Range = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """nn.GRU in eval mode; see lstm."""
    if activation_range is None:
        return gru_float(x, hidden, interleaved(weights, biases), bool(biases), bidirectional, batch_first)
    output, (hidden,) = _Layers(gru_step, weights, biases, bidirectional, activation_range).sequence(x, (hidden,), batch_first)
    return output, hidden


def _permuted(state: Tensor, order: Tensor | None) -> Tensor:
    return state if order is None else state.index_select(1, order)


def lstm_packed(data: Tensor, batch_sizes: Tensor, sorted_indices: Tensor | None, unsorted_indices: Tensor | None, hidden: Tensor | None,
                cell: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor] = (), *, bidirectional: bool = False,
                activation_range: Range = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
    """nn.LSTM on the fields of a packed sequence: data (rows, I), as many sequences at each step as batch_sizes says -> new data."""
    orders = (sorted_indices, unsorted_indices)
    if activation_range is None:
        flat = interleaved(weights, biases)
        return lstm_packed_float(data, batch_sizes, *orders, hidden, cell, flat, bool(biases), bidirectional)
    layers = _Layers(lstm_step, weights, biases, bidirectional, activation_range)
    output, end = layers.packed(data, batch_sizes, orders, (hidden, cell))
    return output, (end[0], end[1])


def gru_packed(data: Tensor, batch_sizes: Tensor, sorted_indices: Tensor | None, unsorted_indices: Tensor | None, hidden: Tensor | None,
               weights: Sequence[Tensor], biases: Sequence[Tensor] = (), *, bidirectional: bool = False,
               activation_range: Range = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """nn.GRU on the fields of a packed sequence; see lstm_packed."""
    orders = (sorted_indices, unsorted_indices)
    if activation_range is None:
        return gru_packed_float(data, batch_sizes, *orders, hidden, interleaved(weights, biases), bool(biases), bidirectional)
    layers = _Layers(gru_step, weights, biases, bidirectional, activation_range)
    output, end = layers.packed(data, batch_sizes, orders, (hidden,))
    return output, end[0]


def _cell(step: Step, x: Tensor, states: Sequence[Tensor | None], weights: Sequence[Tensor], biases: Sequence[Tensor],
          rounding: Range) -> State:  # fmt: skip
    zeros = torch.zeros(*x.shape[:-1], weights[1].shape[1], dtype=x.dtype, device=x.device)
    given = tuple(zeros if s is None else s for s in states)
    b_ih, b_hh = biases or (None, None)
    return step(product(x, weights[0], b_ih, rounding), product(given[0], weights[1], b_hh, rounding), given)


def lstm_cell(x: Tensor, hidden: Tensor | None, cell: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor] = (), *,
              activation_range: Range = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """nn.LSTMCell: x (N, I) or (I,) -> (hidden, cell)."""
    hidden, cell = _cell(lstm_step, x, (hidden, cell), weights, biases, activation_range)
    return hidden, cell


def gru_cell(x: Tensor, hidden: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor] = (), *,
             activation_range: Range = None) -> Tensor:  # fmt: skip
    """nn.GRUCell: x (N, I) or (I,) -> hidden."""
    return _cell(gru_step, x, (hidden,), weights, biases, activation_range)[0]


def rnn_cell(x: Tensor, hidden: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor] = (), *, nonlinearity: str = "tanh",
             activation_range: Range = None) -> Tensor:  # fmt: skip
    """nn.RNNCell: x (N, I) or (I,) -> hidden."""
    return _cell(STEPS[nonlinearity], x, (hidden,), weights, biases, activation_range)[0]
