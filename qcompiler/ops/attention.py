"""nn.MultiheadAttention, and the function that it calls, as linear, attention, linear: what is traced in their place, so that the linears
inside run in int8.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class _Given:
    """What F.multi_head_attention_forward is given, under the names of the module's."""

    embed_dim: int
    num_heads: int
    in_proj_weight: Tensor
    in_proj_bias: Tensor | None
    bias_k: Tensor | None
    bias_v: Tensor | None
    add_zero_attn: bool
    dropout: float
    out_proj: Callable[[Tensor], Tensor]
    training: bool
    q_proj_weight: Tensor | None
    k_proj_weight: Tensor | None
    v_proj_weight: Tensor | None
    _qkv_same_embed_dim: bool
    batch_first: bool = False

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads


Attention = nn.MultiheadAttention | _Given


def _project(m: Attention, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """The three input projections; one packed linear where all three inputs are the same value."""
    biases = m.in_proj_bias.chunk(3) if m.in_proj_bias is not None else (None, None, None)
    if not m._qkv_same_embed_dim:
        weights: Any = (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)
    elif query is key and key is value:
        return tuple(F.linear(query, m.in_proj_weight, m.in_proj_bias).chunk(3, dim=-1))
    else:
        weights = m.in_proj_weight.chunk(3)
    return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))


def _heads(x: Tensor, m: Attention) -> Tensor:
    """(N, L, E) -> (N, H, L, E/H). No size is left to be inferred: it could not be for an empty batch."""
    return torch.unflatten(x, -1, (m.num_heads, m.head_dim)).transpose(1, 2)


def _additive(mask: Any) -> Any:
    """A mask that is added to the scores: a boolean one is -inf where it is True."""
    if mask is None or mask.dtype is not torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=torch.float32, device=mask.device).masked_fill(mask, -math.inf)


def _mask(attn_mask: object, key_padding_mask: object, heads: int, more_keys: int) -> Any:
    """Both masks as one that broadcasts against scores of (N, H, L, S), open for the keys that the module itself appends.

    `attn_mask`: (L, S) or (N * H, L, S). `key_padding_mask`: (N, S).
    """
    mask, padding = _additive(attn_mask), _additive(key_padding_mask)
    if mask is not None and mask.dim() == 3:
        mask = mask.reshape(-1, heads, mask.shape[1], mask.shape[2])
    if padding is not None:
        padding = padding.unsqueeze(1).unsqueeze(1)
        mask = padding if mask is None else mask + padding
    return F.pad(mask, (0, more_keys)) if mask is not None and more_keys else mask


def _appended(m: Attention, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
    """Keys and values of (N, S, E) with the module's learned ones (add_bias_kv) and a zero (add_zero_attn) behind them."""
    count = 0
    for more_k, more_v in ([(m.bias_k, m.bias_v)] if m.bias_k is not None else []) + ([(None, None)] if m.add_zero_attn else []):
        zeros = torch.zeros(1, 1, m.embed_dim, dtype=torch.float32)
        more_k, more_v = (zeros if x is None else x for x in (more_k, more_v))
        k, v = (torch.cat([x, more.expand(x.shape[0], 1, m.embed_dim)], 1) for x, more in ((k, more_k), (v, more_v)))
        count += 1
    return k, v, count


def _weighted(q: Tensor, k: Tensor, mask: Tensor | None, head_dim: int) -> Tensor:
    """softmax(q k' / sqrt(head_dim) + mask), all heads."""
    scores = torch.matmul(q, k.transpose(-2, -1)) * (1 / math.sqrt(head_dim))
    return torch.softmax(scores if mask is None else scores + mask, -1)


def multihead_attention(m: Attention, query: Any, key: Any, value: Any, key_padding_mask: Any = None, need_weights: bool = True,
                        attn_mask: Any = None, average_attn_weights: bool = True, is_causal: bool = False) -> object:  # fmt: skip
    """nn.MultiheadAttention as linear, attention, linear. Shapes as there: (N, L, E) or (L, N, E) or (L, E)."""
    batched = query.dim() == 3
    same = query is key and key is value

    def arrange(x: Any) -> Any:
        return x.unsqueeze(0) if not batched else x if m.batch_first else x.transpose(0, 1)

    query, key, value = (arrange(query), arrange(key), arrange(value)) if not same else (arrange(query),) * 3
    if key_padding_mask is not None and not batched:
        key_padding_mask = key_padding_mask.unsqueeze(0)
    q, k, v = _project(m, query, key, value)
    k, v, more_keys = _appended(m, k, v)
    q, k, v = (_heads(x, m) for x in (q, k, v))
    mask, weights = _mask(attn_mask, key_padding_mask, m.num_heads, more_keys), None
    drops = m.dropout > 0 and int(m.training) != 0  # of a model that is traced for training, `training` is more than a bool
    if need_weights or drops:
        weights = _weighted(q, k, mask, m.head_dim)
        weights = F.dropout(weights, m.dropout, training=m.training) if drops else weights
        mixed = torch.matmul(weights, v)
        weights = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, mask)
    out = m.out_proj(mixed.transpose(1, 2).flatten(2))
    out = out.squeeze(0) if not batched else out if m.batch_first else out.transpose(0, 1)
    return out, (weights.squeeze(0) if weights is not None and not batched else weights)


_FORWARD = inspect.signature(F.multi_head_attention_forward)


def attention_forward(*args: object, **kwargs: object) -> object:
    """F.multi_head_attention_forward, as models of speech and CLIP's attention pool call it. Shapes: (L, N, E) or (L, E)."""
    bound = _FORWARD.bind(*args, **kwargs)
    bound.apply_defaults()
    a = SimpleNamespace(**bound.arguments)
    if a.static_k is not None or a.static_v is not None or a.query.shape[-1] != a.embed_dim_to_check:
        return NotImplemented
    given = _Given(a.embed_dim_to_check, a.num_heads, a.in_proj_weight, a.in_proj_bias, a.bias_k, a.bias_v, a.add_zero_attn, a.dropout_p,
                   lambda mixed: F.linear(mixed, a.out_proj_weight, a.out_proj_bias), a.training,
                   a.q_proj_weight, a.k_proj_weight, a.v_proj_weight, not a.use_separate_proj_weight)  # fmt: skip
    return multihead_attention(
        given, a.query, a.key, a.value, a.key_padding_mask, a.need_weights, a.attn_mask, a.average_attn_weights, a.is_causal
    )
