"""Steps on the last dimension: linears, recurrent layers, attention, normalizations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.grammar.network import Draw, Made, apply, rule


def wide(x: Tensor) -> bool:
    return x.dim() in (2, 3) and 2 <= x.shape[-1] <= 64


@rule(6)
def linear(draw: Draw, x: Tensor) -> Made | None:
    if not wide(x):
        return None
    rng = draw.rng
    made: nn.Module = nn.Linear(x.shape[-1], rng.choice((2, 5, 8, 16)), bias=rng.random() < 0.8)
    if rng.random() < 0.5:
        made = nn.Sequential(made, rng.choice((nn.ReLU(), nn.GELU(), nn.Tanh(), nn.LeakyReLU(0.2), nn.Sigmoid(), nn.ELU())))
    return made, apply


@rule(2)
def shared(draw: Draw, x: Tensor) -> Made | None:
    """A module that another step has already."""
    names = [s.module for s in draw.net.steps if s.module and s.name in ("linear", "conv") and s.function is apply]
    for name in draw.rng.sample(names, len(names)):
        try:
            with torch.no_grad():
                draw.net.parts[name](x)
        except (RuntimeError, ValueError):
            continue
        part = draw.net.parts[name]
        return part, apply
    return None


@rule(3)
def recurrent(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() != 3 or not wide(x) or x.shape[1] > 12:
        return None
    cls: Any = draw.pick(nn.LSTM, nn.LSTM, nn.GRU, nn.GRU, nn.RNN)
    both, layers = draw.rng.random() < 0.3, draw.pick(1, 1, 2)
    made = cls(x.shape[-1], draw.pick(4, 8), num_layers=layers, batch_first=True, bidirectional=both)

    def last_state(part: nn.Module, v: Tensor) -> Tensor:
        state = part(v)[1]
        h: Tensor = state[0] if isinstance(state, tuple) else state
        return h.transpose(0, 1)

    return made, draw.pick(lambda part, v: part(v)[0], lambda part, v: part(v)[0], last_state)


@rule(1)
def cell(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() != 3 or not wide(x) or x.shape[1] > 5:
        return None
    cls: Any = draw.pick(nn.LSTMCell, nn.GRUCell, nn.RNNCell)

    def steps(part: nn.Module, v: Tensor) -> Tensor:
        state = part(v[:, 0])
        for t in range(1, v.size(1)):
            state = part(v[:, t], state)
        h: Tensor = state[0] if isinstance(state, tuple) else state
        return h

    return cls(x.shape[-1], draw.pick(4, 8)), steps


@rule(3)
def attention(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() != 3 or x.shape[-1] not in (4, 8, 16) or x.shape[1] > 64:
        return None
    if draw.rng.random() < 0.5:
        return nn.MultiheadAttention(x.shape[-1], 2, batch_first=True), draw.pick(
            lambda part, v: part(v, v, v, need_weights=False)[0], lambda part, v: part(v, v, v)[0],
            lambda part, v: part(v, v, v, key_padding_mask=torch.arange(v.size(1)).expand(v.shape[:2]) > 2, need_weights=False)[0],
            lambda part, v: part(v[:, :1], v, v, need_weights=False)[0],
        )  # fmt: skip
    causal, fused = draw.rng.random() < 0.4, draw.rng.random() < 0.4

    def attend(part: nn.Module, v: Tensor) -> Tensor:
        q, k, w = part(v).chunk(3, -1)
        if fused:
            return F.scaled_dot_product_attention(q, k, w, is_causal=causal)
        scores = q @ k.transpose(-2, -1) / q.size(-1) ** 0.5
        if causal:
            scores = scores.masked_fill(torch.ones(v.size(1), v.size(1)).triu(1).bool(), float("-inf"))
        return scores.softmax(-1) @ w

    return nn.Linear(x.shape[-1], 3 * x.shape[-1]), attend


@rule(1)
def embedding(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() != 2 or x.shape[1] > 16:
        return None
    return nn.Embedding(2, draw.pick(4, 8)), lambda part, v: part((v > v.mean()).long()) + v.unsqueeze(-1)


@rule(2)
def norm_of_features(draw: Draw, x: Tensor) -> Made | None:
    if not wide(x):
        return None
    if draw.rng.random() < 0.7:
        return nn.LayerNorm(x.shape[-1]), apply
    return None, lambda v: v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + 1e-5)


@rule(1)
def pooled_tokens(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() != 3:
        return None
    return None, draw.pick(lambda v: v.mean(1), lambda v: v[:, 0], lambda v: v[:, -1], lambda v: v.amax(1))


@rule(1)
def to_channels(draw: Draw, x: Tensor) -> Made | None:
    return (None, lambda v: v.transpose(1, 2)) if x.dim() == 3 else None


@rule(1)
def class_token(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() != 3 or not wide(x):
        return None

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 1, x.shape[-1]))

    return Part(), lambda part, v: torch.cat([part.token.expand(v.size(0), -1, -1), v], 1)
