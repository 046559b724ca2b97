"""Recurrent layers and cells in float, on torch's own kernels. Each function is self-contained and scriptable (see runtime/functions.py).

`weights` lists [w_ih, w_hh, b_ih, b_hh] of each cell, without the biases where `has_biases` is False. States may be None: zeros.
"""
# no `from __future__ import annotations`: torch.jit reads the annotations themselves

import torch


def lstm_float(
    x: torch.Tensor,
    hidden: torch.Tensor | None,
    cell: torch.Tensor | None,
    weights: list[torch.Tensor],
    has_biases: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """LSTM: x (T, N, I), or (N, T, I) with batch_first, or (T, I) without a batch."""
    if not torch.jit.is_tracing() and x.size(-1) != weights[0].size(1):  # type: ignore[attr-defined]
        raise RuntimeError("the rows of a recurrent layer's input must have its input size")  # torch's function would read on behind them
    unbatched = x.dim() == 2
    rows = x.unsqueeze(1) if unbatched else x
    first = batch_first and not unbatched
    cells = len(weights) // (4 if has_biases else 2)
    size = [cells, rows.size(0 if first else 1), weights[1].size(1)]
    h = torch.zeros(size, dtype=x.dtype) if hidden is None else (hidden.unsqueeze(1) if unbatched else hidden)
    c = torch.zeros(size, dtype=x.dtype) if cell is None else (cell.unsqueeze(1) if unbatched else cell)
    if not torch.jit.is_tracing() and (list(h.size()) != size or list(c.size()) != size):  # type: ignore[attr-defined]
        raise RuntimeError("the hidden and cell state must be (layers * directions, batch, hidden size)")
    layers = cells // (2 if bidirectional else 1)
    y, h, c = torch.lstm(rows, [h, c], weights, has_biases, layers, 0.0, False, bidirectional, first)
    if unbatched:
        return y.squeeze(1), (h.squeeze(1), c.squeeze(1))
    return y, (h, c)


def gru_float(
    x: torch.Tensor, hidden: torch.Tensor | None, weights: list[torch.Tensor], has_biases: bool, bidirectional: bool, batch_first: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """GRU; see lstm_float."""
    if not torch.jit.is_tracing() and x.size(-1) != weights[0].size(1):  # type: ignore[attr-defined]
        raise RuntimeError("the rows of a recurrent layer's input must have its input size")  # torch's function would read on behind them
    unbatched = x.dim() == 2
    rows = x.unsqueeze(1) if unbatched else x
    first = batch_first and not unbatched
    cells = len(weights) // (4 if has_biases else 2)
    size = [cells, rows.size(0 if first else 1), weights[1].size(1)]
    h = torch.zeros(size, dtype=x.dtype) if hidden is None else (hidden.unsqueeze(1) if unbatched else hidden)
    if not torch.jit.is_tracing() and (list(h.size()) != size):  # type: ignore[attr-defined]
        raise RuntimeError("the hidden and cell state must be (layers * directions, batch, hidden size)")
    layers = cells // (2 if bidirectional else 1)
    y, h = torch.gru(rows, h, weights, has_biases, layers, 0.0, False, bidirectional, first)
    if unbatched:
        return y.squeeze(1), h.squeeze(1)
    return y, h


def lstm_packed_float(
    data: torch.Tensor,
    batch_sizes: torch.Tensor,
    sorted_indices: torch.Tensor | None,
    unsorted_indices: torch.Tensor | None,
    hidden: torch.Tensor | None,
    cell: torch.Tensor | None,
    weights: list[torch.Tensor],
    has_biases: bool,
    bidirectional: bool,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """LSTM on the fields of a PackedSequence; gives its new data."""
    if not torch.jit.is_tracing() and data.size(-1) != weights[0].size(1):  # type: ignore[attr-defined]
        raise RuntimeError("the rows of a recurrent layer's input must have its input size")  # torch's function would read on behind them
    cells = len(weights) // (4 if has_biases else 2)
    zeros = torch.zeros([cells, int(batch_sizes[0]), weights[1].size(1)], dtype=data.dtype)
    h = zeros if hidden is None else (hidden if sorted_indices is None else hidden.index_select(1, sorted_indices))
    c = zeros if cell is None else (cell if sorted_indices is None else cell.index_select(1, sorted_indices))
    if not torch.jit.is_tracing() and (h.size() != zeros.size() or c.size() != zeros.size()):  # type: ignore[attr-defined]
        raise RuntimeError("the hidden and cell state must be (layers * directions, batch, hidden size)")
    layers = cells // (2 if bidirectional else 1)
    y, h, c = torch.lstm(data, batch_sizes, [h, c], weights, has_biases, layers, 0.0, False, bidirectional)
    if unsorted_indices is not None:
        h, c = h.index_select(1, unsorted_indices), c.index_select(1, unsorted_indices)
    return y, (h, c)


def gru_packed_float(
    data: torch.Tensor,
    batch_sizes: torch.Tensor,
    sorted_indices: torch.Tensor | None,
    unsorted_indices: torch.Tensor | None,
    hidden: torch.Tensor | None,
    weights: list[torch.Tensor],
    has_biases: bool,
    bidirectional: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """GRU on the fields of a PackedSequence; see lstm_packed_float."""
    if not torch.jit.is_tracing() and data.size(-1) != weights[0].size(1):  # type: ignore[attr-defined]
        raise RuntimeError("the rows of a recurrent layer's input must have its input size")  # torch's function would read on behind them
    cells = len(weights) // (4 if has_biases else 2)
    zeros = torch.zeros([cells, int(batch_sizes[0]), weights[1].size(1)], dtype=data.dtype)
    h = zeros if hidden is None else (hidden if sorted_indices is None else hidden.index_select(1, sorted_indices))
    if not torch.jit.is_tracing() and (h.size() != zeros.size()):  # type: ignore[attr-defined]
        raise RuntimeError("the hidden and cell state must be (layers * directions, batch, hidden size)")
    layers = cells // (2 if bidirectional else 1)
    y, h = torch.gru(data, batch_sizes, h, weights, has_biases, layers, 0.0, False, bidirectional)
    if unsorted_indices is not None:
        h = h.index_select(1, unsorted_indices)
    return y, h


def lstm_cell_float(
    x: torch.Tensor, hidden: torch.Tensor | None, cell: torch.Tensor | None, weights: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """LSTMCell: x (N, I) or (I,)."""
    rows = x.unsqueeze(0) if x.dim() == 1 else x
    zeros = torch.zeros([rows.size(0), weights[1].size(1)], dtype=x.dtype)
    h = zeros if hidden is None else (hidden.unsqueeze(0) if x.dim() == 1 else hidden)
    c = zeros if cell is None else (cell.unsqueeze(0) if x.dim() == 1 else cell)
    b_ih = weights[2] if len(weights) > 2 else None
    b_hh = weights[3] if len(weights) > 2 else None
    h, c = torch.lstm_cell(rows, [h, c], weights[0], weights[1], b_ih, b_hh)
    return (h.squeeze(0), c.squeeze(0)) if x.dim() == 1 else (h, c)


def gru_cell_float(x: torch.Tensor, hidden: torch.Tensor | None, weights: list[torch.Tensor]) -> torch.Tensor:
    """GRUCell: x (N, I) or (I,)."""
    rows = x.unsqueeze(0) if x.dim() == 1 else x
    zeros = torch.zeros([rows.size(0), weights[1].size(1)], dtype=x.dtype)
    h = zeros if hidden is None else (hidden.unsqueeze(0) if x.dim() == 1 else hidden)
    b_ih = weights[2] if len(weights) > 2 else None
    b_hh = weights[3] if len(weights) > 2 else None
    h = torch.gru_cell(rows, h, weights[0], weights[1], b_ih, b_hh)
    return h.squeeze(0) if x.dim() == 1 else h


def rnn_cell_float(x: torch.Tensor, hidden: torch.Tensor | None, weights: list[torch.Tensor], nonlinearity: str) -> torch.Tensor:
    """RNNCell: x (N, I) or (I,)."""
    rows = x.unsqueeze(0) if x.dim() == 1 else x
    zeros = torch.zeros([rows.size(0), weights[1].size(1)], dtype=x.dtype)
    h = zeros if hidden is None else (hidden.unsqueeze(0) if x.dim() == 1 else hidden)
    b_ih = weights[2] if len(weights) > 2 else None
    b_hh = weights[3] if len(weights) > 2 else None
    if nonlinearity == "tanh":
        h = torch.rnn_tanh_cell(rows, h, weights[0], weights[1], b_ih, b_hh)
    else:
        h = torch.rnn_relu_cell(rows, h, weights[0], weights[1], b_ih, b_hh)
    return h.squeeze(0) if x.dim() == 1 else h
