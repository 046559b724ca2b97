"""Recurrences: packed sequences, cells of convolutions, states that are learned, layers of layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.grammar.features import wide
from tests.grammar.network import Draw, Made, rule


@rule(1)
def packed(draw: Draw, x: Tensor) -> Made | None:
    """Rows of unlike lengths."""
    if x.dim() != 3 or not wide(x) or not 2 <= x.shape[1] <= 12:
        return None
    cls: Any = draw.pick(nn.LSTM, nn.GRU)

    def run(part: Any, v: Tensor) -> Tensor:
        lengths = torch.tensor([v.size(1) - i % 2 for i in range(v.size(0))])
        result = part(pack_padded_sequence(v, lengths, batch_first=True, enforce_sorted=False))[0]
        return pad_packed_sequence(result, batch_first=True, total_length=v.size(1))[0]  # type: ignore[no-any-return]

    return cls(x.shape[-1], 4, batch_first=True, bidirectional=draw.pick(True, False)), run


@rule(1)
def states(draw: Draw, x: Tensor) -> Made | None:
    """All that a recurrent layer gives, states that are learned, two layers one behind the other."""
    if x.dim() != 3 or not wide(x) or x.shape[1] > 12:
        return None
    width = x.shape[-1]

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.cell = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 1, 4))
            self.lstm, self.gru = nn.LSTM(width, 4, batch_first=True), nn.GRU(4, width, batch_first=True, bidirectional=True)
            self.step = nn.GRUCell(width, width)

    def learned(part: Any, v: Tensor) -> Tensor:
        h, c = (state.expand(-1, v.size(0), -1).contiguous() for state in (part.start, part.cell))
        y, (h, c) = part.lstm(v, (h, c))
        return torch.cat([y, h.transpose(0, 1), c.transpose(0, 1)], 1)

    def stacked(part: Any, v: Tensor) -> Tensor:
        y = part.gru(part.lstm(v)[0])[0]
        return v + y[..., :width] + y[..., width:]

    def gated(part: Any, v: Tensor) -> Tensor:
        h, found = torch.zeros_like(v[:, 0]), []
        for piece in v.unbind(1):
            h = part.step(piece, h * 0.9)
            found.append(h)
        return torch.stack(found, 1)

    return Part(), draw.pick(learned, stacked, gated)


@rule(1)
def cell_of_convolutions(draw: Draw, x: Tensor) -> Made | None:
    """A ConvLSTM over a few steps, each of the same image."""
    if x.dim() != 4 or x[0, 0].numel() > 100:
        return None
    part = nn.Conv2d(x.shape[1] + 2, 8, 3, padding=1)

    def steps(part: Any, v: Tensor) -> Tensor:
        h = c = v.new_zeros(v.size(0), 2, v.size(2), v.size(3))
        for _ in range(2):
            i, f, g, o = part(torch.cat([v, h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return torch.cat([h, c], 1)

    return part, steps
