"""Steps on (N, T, features): other forms of recurrent layers and attention, convolutions over time, embeddings of integers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.grammar.features import wide
from tests.grammar.network import Draw, Made, apply, rule


@rule(2)
def recurrent_form(draw: Draw, x: Tensor) -> Made | None:
    """Time first, projections, states that are given, biases left out."""
    if x.dim() != 3 or not wide(x) or x.shape[1] > 12:
        return None
    kind, hidden = draw.pick("time first", "projection", "state", "no bias", "relu"), draw.pick(4, 8)
    cls: Any = draw.pick(nn.LSTM, nn.GRU)
    if kind == "time first":
        return cls(x.shape[-1], hidden), lambda part, v: part(v.transpose(0, 1))[0].transpose(0, 1)
    if kind == "projection":
        return nn.LSTM(x.shape[-1], hidden, proj_size=3, batch_first=True), lambda part, v: part(v)[0]
    if kind == "relu":
        return nn.RNN(x.shape[-1], hidden, nonlinearity="relu", batch_first=True), lambda part, v: part(v)[0]
    if kind == "no bias":
        return cls(x.shape[-1], hidden, bias=False, batch_first=True), lambda part, v: part(v)[0][:, -1]

    def with_state(part: nn.Module, v: Tensor) -> Tensor:
        h = torch.zeros(1, v.size(0), hidden)
        y, state = part(v, (h, h + 0.5) if isinstance(part, nn.LSTM) else h)
        return y + (state[0] if isinstance(state, tuple) else state).transpose(0, 1)

    return cls(x.shape[-1], hidden, batch_first=True), with_state


@rule(2)
def heads(draw: Draw, x: Tensor) -> Made | None:
    """Attention of two heads by hand: einsum, matmul, a bias on the scores, one linear for queries, keys and values."""
    if x.dim() != 3 or x.shape[-1] not in (4, 8, 16) or x.shape[1] > 64:
        return None
    width, form = x.shape[-1], draw.pick("einsum", "bias", "fused", "cross")
    part = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "out": nn.Linear(width, width)})

    def attend(part: Any, v: Tensor) -> Tensor:
        n, t, c = v.shape
        q, k, w = part["qkv"](v).reshape(n, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        if form == "fused":
            y = F.scaled_dot_product_attention(q, k, w, attn_mask=torch.ones(t, t).tril().bool())
        elif form == "einsum":
            y = torch.einsum("nhqk,nhkc->nhqc", (torch.einsum("nhqc,nhkc->nhqk", q, k) * 0.5).softmax(-1), w)
        elif form == "bias":
            distance = (torch.arange(t)[:, None] - torch.arange(t)).abs()
            y = (q @ k.mT / 2 - distance * 0.1).softmax(-1) @ w
        else:
            y = (q[:, :, :1] @ k.transpose(-1, -2)).softmax(-1) @ w
        return v + part["out"](y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    return part, attend


@rule(1)
def encoder_layer(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() != 3 or x.shape[-1] not in (4, 8, 16) or x.shape[1] > 16:
        return None
    return nn.TransformerEncoderLayer(
        x.shape[-1], 2, 16, activation=draw.pick("relu", "gelu"), batch_first=True, norm_first=draw.pick(False, True)
    ), apply


@rule(2)
def mlp(draw: Draw, x: Tensor) -> Made | None:
    """Two linears and what stands between and around them: a gate, a residual, a layer scale, a norm before."""
    if not wide(x):
        return None
    width, form = x.shape[-1], draw.pick("gelu", "gated", "scaled")

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 16), nn.Linear(8 if form == "gated" else 16, width)
            self.gamma, self.drop = nn.Parameter(torch.full((width,), 0.1)), nn.Dropout(0.1)

        def forward(self, v: Tensor) -> Tensor:
            y = self.up(self.norm(v))
            y = F.glu(y, -1) if form == "gated" else F.gelu(y, approximate="tanh")
            y = self.drop(self.down(y))
            return v + (self.gamma * y if form == "scaled" else y)  # type: ignore[no-any-return]

    return Part(), apply


@rule(4)
def looked_up(draw: Draw, x: Tensor) -> Made | None:
    """Rows of a table at the integers that the caller gives."""
    found = [i for i, v in enumerate(draw.values) if v.dtype is torch.int64]
    if not found:
        return None
    draw.index = draw.rng.choice(found)
    if draw.rng.random() < 0.3:
        return nn.EmbeddingBag(10, draw.pick(4, 8), mode=draw.pick("mean", "sum")), apply
    return nn.Embedding(10, draw.pick(4, 8)), draw.pick(apply, lambda part, ids: part(ids[:, -1:]))


@rule(1)
def over_time(draw: Draw, x: Tensor) -> Made | None:
    """A causal convolution over time, or one for each channel."""
    if x.dim() != 3 or not wide(x):
        return None
    groups = draw.pick(1, x.shape[-1])
    part = nn.Conv1d(x.shape[-1], x.shape[-1], 3, groups=groups, dilation=draw.pick(1, 2))
    return part, lambda part, v: part(F.pad(v.transpose(1, 2), (2 * part.dilation[0], 0))).transpose(1, 2)
