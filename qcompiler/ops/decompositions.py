"""What is traced as something simpler, so that the linears inside run in int8. `DECOMPOSE` maps a module class to a function
of (module, *its arguments)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.errors import TraceError


def _project(m: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """The three input projections; one packed linear where all three inputs are the same value."""
    biases = m.in_proj_bias.chunk(3) if m.in_proj_bias is not None else (None, None, None)
    if not m._qkv_same_embed_dim:
        weights: Any = (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)
    elif query is key and key is value:
        return tuple(F.linear(query, m.in_proj_weight, m.in_proj_bias).chunk(3, dim=-1))
    else:
        weights = m.in_proj_weight.chunk(3)
    return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))


def _heads(x: Tensor, heads: int) -> Tensor:
    """(N, L, E) -> (N, H, L, E/H)."""
    return x.reshape(x.shape[0], -1, heads, x.shape[-1] // heads).transpose(1, 2)


def _weighted(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k' / sqrt(d) + mask), all heads."""
    scores = torch.matmul(q, k.transpose(-2, -1)) * (1 / math.sqrt(q.shape[-1]))
    return torch.softmax(scores if mask is None else scores + mask, -1)


def multihead_attention(m: nn.MultiheadAttention, query: Any, key: Any, value: Any, key_padding_mask: Any = None, need_weights: bool = True,
                        attn_mask: Any = None, average_attn_weights: bool = True, is_causal: bool = False) -> Any:  # fmt: skip
    """nn.MultiheadAttention in eval mode as linear, attention, linear. Shapes as there: (N, L, E) or (L, N, E) or (L, E)."""
    if m.bias_k is not None or m.add_zero_attn or key_padding_mask is not None:
        raise TraceError("MultiheadAttention with bias_k, add_zero_attn or key_padding_mask is not decomposed")
    if isinstance(attn_mask, Tensor) and (attn_mask.dim() != 2 or attn_mask.dtype is torch.bool):
        raise TraceError("MultiheadAttention with a boolean or per-head mask is not decomposed")
    batched = query.dim() == 3
    same = query is key and key is value

    def arrange(x: Any) -> Any:
        return x.unsqueeze(0) if not batched else x if m.batch_first else x.transpose(0, 1)

    query = arrange(query)
    key, value = (query, query) if same else (arrange(key), arrange(value))
    q, k, v = (_heads(x, m.num_heads) for x in _project(m, query, key, value))
    weights = None
    if need_weights:
        weights = _weighted(q, k, attn_mask)
        mixed = torch.matmul(weights, v)
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask)
    out = m.out_proj(mixed.transpose(1, 2).reshape(query.shape[0], -1, m.embed_dim))
    out = out.squeeze(0) if not batched else out if m.batch_first else out.transpose(0, 1)
    return out, (weights.squeeze(0) if weights is not None and not batched else weights)


DECOMPOSE: dict[Any, Any] = {nn.MultiheadAttention: multihead_attention}
