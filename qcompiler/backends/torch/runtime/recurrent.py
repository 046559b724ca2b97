"""Dynamic recurrent layers and cells: what lowered graphs and nn.quantized.dynamic call. Self-contained and scriptable, as functions.py.

Weights are packed cell by cell (`cells`: layer by layer, in each the forward direction first). torch's own cell operators always
round activations to 127 steps; one step of the layer's operator takes the range it is told.
"""
# no `from __future__ import annotations`: torch.jit reads the annotations themselves

import torch


def prepack_cell(
    w_ih: torch.Tensor,
    scale_ih: torch.Tensor,
    zero_point_ih: torch.Tensor,
    w_hh: torch.Tensor,
    scale_hh: torch.Tensor,
    zero_point_hh: torch.Tensor,
    b_ih: torch.Tensor | None,
    b_hh: torch.Tensor | None,
    per_channel: bool,
    reduce_range: bool,
) -> torch.classes.rnn.CellParamsBase:  # type: ignore[name-defined]
    """Packs the int8 weights of one cell for the current engine; scales and zero points are vectors where `per_channel`."""
    if per_channel:
        ih = torch._make_per_channel_quantized_tensor(w_ih, scale_ih.double(), zero_point_ih.long(), 0)
        hh = torch._make_per_channel_quantized_tensor(w_hh, scale_hh.double(), zero_point_hh.long(), 0)
    else:
        ih = torch._make_per_tensor_quantized_tensor(w_ih, float(scale_ih.item()), int(zero_point_ih.item()))
        hh = torch._make_per_tensor_quantized_tensor(w_hh, float(scale_hh.item()), int(zero_point_hh.item()))
    zeros = torch.zeros([w_ih.size(0)], dtype=torch.float32)
    pack_ih, pack_hh = torch.ops.quantized.linear_prepack(ih, b_ih), torch.ops.quantized.linear_prepack(hh, b_hh)
    first, second = zeros if b_ih is None else b_ih, zeros if b_hh is None else b_hh
    return torch.ops.quantized.make_quantized_cell_params_dynamic(pack_ih, pack_hh, first, second, reduce_range)


prepack_cell.once = True  # type: ignore[attr-defined]
prepack_cell.by_shape = ("onednn",)  # type: ignore[attr-defined]


def prepack_cell_half(
    w_ih: torch.Tensor, w_hh: torch.Tensor, b_ih: torch.Tensor | None, b_hh: torch.Tensor | None
) -> torch.classes.rnn.CellParamsBase:  # type: ignore[name-defined]
    """Packs the float16 weights of one cell (fbgemm alone)."""
    pack_ih = torch.ops.quantized.linear_prepack_fp16(w_ih.float(), b_ih)
    pack_hh = torch.ops.quantized.linear_prepack_fp16(w_hh.float(), b_hh)
    return torch.ops.quantized.make_quantized_cell_params_fp16(pack_ih, pack_hh)


prepack_cell_half.once = True  # type: ignore[attr-defined]


def lstm_dynamic(
    x: torch.Tensor,
    hidden: torch.Tensor | None,
    cell: torch.Tensor | None,
    cells: list[torch.classes.rnn.CellParamsBase],  # type: ignore[name-defined]
    hidden_size: int,
    bidirectional: bool,
    batch_first: bool,
    half: bool,
    input_size: int = 0,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """LSTM on packed int8 (or float16) cells: x (T, N, I), or (N, T, I) with batch_first, or (T, I) without a batch."""
    if not torch.jit.is_tracing() and input_size > 0 and x.size(-1) != input_size:  # type: ignore[attr-defined]
        raise RuntimeError("the rows of a recurrent layer's input must have its input size")  # a kernel would read on behind them
    unbatched = x.dim() == 2
    rows = x.unsqueeze(1) if unbatched else x
    first = batch_first and not unbatched
    directions = 2 if bidirectional else 1
    batch = rows.size(0 if first else 1)
    zeros = torch.zeros([len(cells), batch, hidden_size], dtype=torch.float32)
    h = zeros if hidden is None else (hidden.unsqueeze(1) if unbatched else hidden)
    c = zeros if cell is None else (cell.unsqueeze(1) if unbatched else cell)
    if not torch.jit.is_tracing():  # type: ignore[attr-defined]
        if h.size() != zeros.size() or c.size() != zeros.size():
            raise RuntimeError("the hidden and cell state must be (layers * directions, batch, hidden size)")
        if batch == 0:
            return torch.zeros([rows.size(0), rows.size(1), directions * hidden_size], dtype=torch.float32), (h, c)
    kind = torch.float16 if half else torch.qint8
    y, h, c = torch.quantized_lstm(rows, [h, c], cells, True, len(cells) // directions, 0.0, False, bidirectional, first,
                                   dtype=kind, use_dynamic=True)  # fmt: skip
    if unbatched:
        return y.squeeze(1), (h.squeeze(1), c.squeeze(1))
    return y, (h, c)


def gru_dynamic(
    x: torch.Tensor,
    hidden: torch.Tensor | None,
    cells: list[torch.classes.rnn.CellParamsBase],  # type: ignore[name-defined]
    hidden_size: int,
    bidirectional: bool,
    batch_first: bool,
    input_size: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """GRU on packed int8 (or float16) cells; see lstm_dynamic."""
    if not torch.jit.is_tracing() and input_size > 0 and x.size(-1) != input_size:  # type: ignore[attr-defined]
        raise RuntimeError("the rows of a recurrent layer's input must have its input size")  # a kernel would read on behind them
    unbatched = x.dim() == 2
    rows = x.unsqueeze(1) if unbatched else x
    first = batch_first and not unbatched
    directions = 2 if bidirectional else 1
    batch = rows.size(0 if first else 1)
    zeros = torch.zeros([len(cells), batch, hidden_size], dtype=torch.float32)
    h = zeros if hidden is None else (hidden.unsqueeze(1) if unbatched else hidden)
    if not torch.jit.is_tracing():  # type: ignore[attr-defined]
        if h.size() != zeros.size():
            raise RuntimeError("the hidden state must be (layers * directions, batch, hidden size)")
        if batch == 0:
            return torch.zeros([rows.size(0), rows.size(1), directions * hidden_size], dtype=torch.float32), h
    y, h = torch.quantized_gru(rows, h, cells, True, len(cells) // directions, 0.0, False, bidirectional, first)
    if unbatched:
        return y.squeeze(1), h.squeeze(1)
    return y, h


def lstm_packed_dynamic(
    data: torch.Tensor,
    batch_sizes: torch.Tensor,
    sorted_indices: torch.Tensor | None,
    unsorted_indices: torch.Tensor | None,
    hidden: torch.Tensor | None,
    cell: torch.Tensor | None,
    cells: list[torch.classes.rnn.CellParamsBase],  # type: ignore[name-defined]
    hidden_size: int,
    bidirectional: bool,
    half: bool,
    input_size: int = 0,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """LSTM on the fields of a PackedSequence; gives its new data."""
    if not torch.jit.is_tracing() and input_size > 0 and data.size(-1) != input_size:  # type: ignore[attr-defined]
        raise RuntimeError("the rows of a recurrent layer's input must have its input size")  # a kernel would read on behind them
    zeros = torch.zeros([len(cells), int(batch_sizes[0]), hidden_size], dtype=torch.float32)
    h = zeros if hidden is None else (hidden if sorted_indices is None else hidden.index_select(1, sorted_indices))
    c = zeros if cell is None else (cell if sorted_indices is None else cell.index_select(1, sorted_indices))
    if not torch.jit.is_tracing() and (h.size() != zeros.size() or c.size() != zeros.size()):  # type: ignore[attr-defined]
        raise RuntimeError("the hidden and cell state must be (layers * directions, batch, hidden size)")
    kind = torch.float16 if half else torch.qint8
    y, h, c = torch.quantized_lstm(data, batch_sizes, [h, c], cells, True, len(cells) // (2 if bidirectional else 1), 0.0, False,
                                   bidirectional, dtype=kind, use_dynamic=True)  # fmt: skip
    if unsorted_indices is not None:
        h, c = h.index_select(1, unsorted_indices), c.index_select(1, unsorted_indices)
    return y, (h, c)


def gru_packed_dynamic(
    data: torch.Tensor,
    batch_sizes: torch.Tensor,
    sorted_indices: torch.Tensor | None,
    unsorted_indices: torch.Tensor | None,
    hidden: torch.Tensor | None,
    cells: list[torch.classes.rnn.CellParamsBase],  # type: ignore[name-defined]
    hidden_size: int,
    bidirectional: bool,
    input_size: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """GRU on the fields of a PackedSequence; see lstm_packed_dynamic."""
    if not torch.jit.is_tracing() and input_size > 0 and data.size(-1) != input_size:  # type: ignore[attr-defined]
        raise RuntimeError("the rows of a recurrent layer's input must have its input size")  # a kernel would read on behind them
    zeros = torch.zeros([len(cells), int(batch_sizes[0]), hidden_size], dtype=torch.float32)
    h = zeros if hidden is None else (hidden if sorted_indices is None else hidden.index_select(1, sorted_indices))
    if not torch.jit.is_tracing() and h.size() != zeros.size():  # type: ignore[attr-defined]
        raise RuntimeError("the hidden state must be (layers * directions, batch, hidden size)")
    y, h = torch.quantized_gru(data, batch_sizes, h, cells, True, len(cells) // (2 if bidirectional else 1), 0.0, False, bidirectional)
    if unsorted_indices is not None:
        h = h.index_select(1, unsorted_indices)
    return y, h


def lstm_cell_dynamic(
    x: torch.Tensor,
    hidden: torch.Tensor | None,
    cell: torch.Tensor | None,
    cells: list[torch.classes.rnn.CellParamsBase],  # type: ignore[name-defined]
    hidden_size: int,
    half: bool,
    input_size: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """LSTMCell: x (N, I) or (I,) -> (hidden, cell)."""
    if not torch.jit.is_tracing() and input_size > 0 and x.size(-1) != input_size:  # type: ignore[attr-defined]
        raise RuntimeError("the rows of a recurrent layer's input must have its input size")  # a kernel would read on behind them
    rows = x.unsqueeze(0) if x.dim() == 1 else x
    zeros = torch.zeros([1, rows.size(0), hidden_size], dtype=torch.float32)
    h = zeros if hidden is None else (hidden[None, None] if x.dim() == 1 else hidden[None])
    c = zeros if cell is None else (cell[None, None] if x.dim() == 1 else cell[None])
    if not torch.jit.is_tracing() and (h.size() != zeros.size() or c.size() != zeros.size()):  # type: ignore[attr-defined]
        raise RuntimeError("the hidden and cell state must be (batch, hidden size)")
    if torch.jit.is_tracing() or rows.size(0) > 0:  # type: ignore[attr-defined]
        kind = torch.float16 if half else torch.qint8
        h, c = torch.quantized_lstm(rows.unsqueeze(0), [h, c], cells, True, 1, 0.0, False, False, False, dtype=kind,
                                    use_dynamic=True)[1:]  # fmt: skip
    h, c = h.squeeze(0), c.squeeze(0)
    return (h.squeeze(0), c.squeeze(0)) if x.dim() == 1 else (h, c)


def gru_cell_dynamic(
    x: torch.Tensor,
    hidden: torch.Tensor | None,
    cells: list[torch.classes.rnn.CellParamsBase],  # type: ignore[name-defined]
    hidden_size: int,
    input_size: int = 0,
) -> torch.Tensor:
    """GRUCell: x (N, I) or (I,) -> hidden."""
    if not torch.jit.is_tracing() and input_size > 0 and x.size(-1) != input_size:  # type: ignore[attr-defined]
        raise RuntimeError("the rows of a recurrent layer's input must have its input size")  # a kernel would read on behind them
    rows = x.unsqueeze(0) if x.dim() == 1 else x
    zeros = torch.zeros([1, rows.size(0), hidden_size], dtype=torch.float32)
    h = zeros if hidden is None else (hidden[None, None] if x.dim() == 1 else hidden[None])
    if not torch.jit.is_tracing() and (h.size() != zeros.size()):  # type: ignore[attr-defined]
        raise RuntimeError("the hidden and cell state must be (batch, hidden size)")
    if torch.jit.is_tracing() or rows.size(0) > 0:  # type: ignore[attr-defined]
        h = torch.quantized_gru(rows.unsqueeze(0), h, cells, True, 1, 0.0, False, False, False)[1]
    h = h.squeeze(0)
    return h.squeeze(0) if x.dim() == 1 else h


def rnn_cell_dynamic(
    x: torch.Tensor,
    hidden: torch.Tensor | None,
    pack_ih: torch.classes.quantized.LinearPackedParamsBase,  # type: ignore[name-defined]
    pack_hh: torch.classes.quantized.LinearPackedParamsBase,  # type: ignore[name-defined]
    hidden_size: int,
    relu: bool,
    reduce_range: bool,
    half: bool,
    input_size: int = 0,
) -> torch.Tensor:
    """RNNCell: x (N, I) or (I,) -> hidden."""
    if not torch.jit.is_tracing() and input_size > 0 and x.size(-1) != input_size:  # type: ignore[attr-defined]
        raise RuntimeError("the rows of a recurrent layer's input must have its input size")  # a kernel would read on behind them
    rows = x.unsqueeze(0) if x.dim() == 1 else x
    zeros = torch.zeros([rows.size(0), hidden_size], dtype=torch.float32)
    h = zeros if hidden is None else (hidden.unsqueeze(0) if x.dim() == 1 else hidden)
    if not torch.jit.is_tracing() and (h.size() != zeros.size()):  # type: ignore[attr-defined]
        raise RuntimeError("the hidden and cell state must be (batch, hidden size)")
    if half:
        total = torch.ops.quantized.linear_dynamic_fp16(rows, pack_ih) + torch.ops.quantized.linear_dynamic_fp16(h, pack_hh)
    else:
        total = torch.ops.quantized.linear_dynamic(rows, pack_ih, reduce_range)
        total = total + torch.ops.quantized.linear_dynamic(h, pack_hh, reduce_range)
    made = torch.relu(total) if relu else torch.tanh(total)
    return made.squeeze(0) if x.dim() == 1 else made
