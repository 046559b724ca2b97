"""MultiheadAttention of linears: they run on int8 values, the attention between them in float."""
# no `from __future__ import annotations`: torch.jit reads the annotations themselves

import math
from typing import Any, ClassVar, Optional

import torch
from torch import Tensor, nn
from torch._jit_internal import is_scripting

from qcompiler.errors import ConfigError, InputError
from qcompiler.nn.float_classes import FloatClasses
from qcompiler.nn.place import place_of
from qcompiler.nn.quantizable.observe import Observed, observe_, qconfig_of


def real(x: Tensor) -> Tensor:
    """Float values. A float tensor stays itself: its dequantize has no derivative."""
    return x.dequantize() if x.is_quantized else x


def additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask to be added to scores: True (or nonzero, of an integer mask) becomes -inf; float masks stay."""
    if mask.is_floating_point():
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask.to(torch.bool), -math.inf)


class MultiheadAttention(nn.Module):
    """nn.MultiheadAttention in parts that can be observed; the same values. Arguments as there.

    linear_Q, linear_K, linear_V -> float scores, softmax and weighted sum -> out_proj. Scores and softmax stay float in the
    quantized form too: torch's int8 product computes in float as well, and rounding them costs accuracy.
    """

    _FLOAT_MODULE: ClassVar[FloatClasses] = nn.MultiheadAttention
    in_proj_bias: ClassVar[object] = None  # nn.TransformerEncoderLayer takes this for "no fused kernel"
    _qkv_same_embed_dim: ClassVar[bool] = False

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True, add_bias_kv: bool = False,
                 add_zero_attn: bool = False, kdim: int | None = None, vdim: int | None = None, batch_first: bool = False,
                 device: Any = None, dtype: Any = None) -> None:  # fmt: skip
        """Raises ConfigError where the heads do not divide embed_dim."""
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ConfigError(f"embed_dim {embed_dim} cannot be split in {num_heads} heads", code="heads")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.kdim, self.vdim = kdim or embed_dim, vdim or embed_dim
        self.dropout, self.add_zero_attn, self.batch_first = dropout, add_zero_attn, batch_first
        made = {"device": device, "dtype": dtype}
        self.linear_Q = nn.Linear(embed_dim, embed_dim, bias, **made)
        self.linear_K = nn.Linear(self.kdim, embed_dim, bias, **made)
        self.linear_V = nn.Linear(self.vdim, embed_dim, bias, **made)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias, **made)
        self.quant_attn_output: nn.Module = Observed()
        for name in ("bias_k", "bias_v"):
            value = nn.Parameter(torch.empty(1, 1, embed_dim, **made)) if add_bias_kv else None
            self.register_parameter(name, value if value is None else nn.init.xavier_normal_(value))  # type: ignore[arg-type]

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Optional[Tensor] = None,  # noqa: UP045
                need_weights: bool = True, attn_mask: Optional[Tensor] = None, average_attn_weights: bool = True,  # noqa: UP045
                is_causal: bool = False) -> tuple[Tensor, Optional[Tensor]]:  # fmt: skip # noqa: UP045
        """(L, N, E), or (N, L, E) with batch_first, or (L, E), as in nn.MultiheadAttention: the result and the weights (or None).

        `is_causal` is a hint that asks for `attn_mask`.
        """
        if is_causal and attn_mask is None and not is_scripting():
            self._refuse_hint()
        batched = query.dim() == 3
        q = self._heads(self.linear_Q(query), batched)
        k = self._heads(self._longer(real(self.linear_K(key)), self.bias_k, batched), batched)
        v = self._heads(self._longer(real(self.linear_V(value)), self.bias_v, batched), batched)
        if self.add_zero_attn:
            zeros = torch.zeros([k.size(0), k.size(1), 1, k.size(3)], dtype=k.dtype, device=k.device)
            k, v = torch.cat([k, zeros], 2), torch.cat([v, zeros], 2)
        mask = self._mask(q, k, key_padding_mask, attn_mask)
        weights = torch.matmul(q, k.transpose(2, 3)) * (1.0 / math.sqrt(self.head_dim))
        weights = torch.softmax(weights if mask is None else weights + mask, 3)
        mixed = torch.matmul(nn.functional.dropout(weights, self.dropout, self.training), v)
        mixed = mixed.transpose(1, 2).flatten(2)  # (N, L, E)
        mixed = mixed.squeeze(0) if not batched else mixed if self.batch_first else mixed.transpose(0, 1).contiguous()
        result = self.out_proj(self.quant_attn_output(mixed))
        if not need_weights:
            return result, None
        weights = weights.mean(1) if average_attn_weights else weights
        return result, self._weights_out(weights if batched else weights.squeeze(0))

    def _longer(self, x: Tensor, extra: Optional[Tensor], batched: bool) -> Tensor:  # noqa: UP045
        """Keys or values with the learned one behind them."""
        if extra is None:
            return x
        if not batched:
            return torch.cat([x, extra[0]], 0)
        if self.batch_first:
            return torch.cat([x, extra.expand(x.size(0), 1, -1)], 1)
        return torch.cat([x, extra.expand(1, x.size(1), -1)], 0)

    def _heads(self, x: Tensor, batched: bool) -> Tensor:
        """Float values as (N, heads, L, head_dim)."""
        x = real(x)
        x = x.unsqueeze(0) if not batched else x if self.batch_first else x.transpose(0, 1)
        return x.reshape(x.size(0), x.size(1), self.num_heads, self.head_dim).transpose(1, 2)

    def _mask(self, q: Tensor, k: Tensor, padding: Optional[Tensor], attention: Optional[Tensor]) -> Optional[Tensor]:  # noqa: UP045
        """Both masks as one that is added to the scores; what was appended to the keys is seen by all."""
        mask: Optional[Tensor] = None  # noqa: UP045
        if attention is not None:
            mask = additive(attention, q)
            mask = mask.reshape(q.size(0), self.num_heads, mask.size(1), mask.size(2)) if mask.dim() == 3 else mask
        if padding is not None:
            rows = additive(padding, q)
            rows = (rows if rows.dim() == 2 else rows.unsqueeze(0)).unsqueeze(1).unsqueeze(2)
            mask = rows if mask is None else mask + rows
        if mask is None:
            return None
        return nn.functional.pad(mask, [0, k.size(2) - mask.size(-1)])

    def _weights_out(self, weights: Tensor) -> Tensor:
        """The attention weights as they are handed out."""
        return weights

    @torch.jit.unused
    def _refuse_hint(self) -> None:
        raise InputError("is_causal is a hint about attn_mask, which is not given", code="causal-mask",
                         where=place_of(self))  # fmt: skip

    def _get_name(self) -> str:
        return f"Quantizable{type(self).__name__}"

    @classmethod
    def from_float(cls, other: nn.MultiheadAttention) -> Any:
        """The observed module with copies of the weights of an nn.MultiheadAttention that has a qconfig.

        Calibrate it, then nn.quantized.MultiheadAttention.from_observed. Raises ConfigError for another module or without a
        qconfig.
        """
        where = place_of(other)
        if not isinstance(other, nn.MultiheadAttention):
            text = f"quantizable.MultiheadAttention stands for nn.MultiheadAttention, not for {type(other).__name__}"
            raise ConfigError(text, code="from-float", where=where)
        qconfig = qconfig_of(other)
        made = cls(other.embed_dim, other.num_heads, other.dropout, other.in_proj_bias is not None, other.bias_k is not None,
                   other.add_zero_attn, other.kdim, other.vdim, other.batch_first)  # fmt: skip
        made.train(other.training)
        made._take(other)
        observe_(made, qconfig, where.module_path or "")
        return made

    def _take(self, other: nn.MultiheadAttention) -> None:
        """Copies of the float module's weights."""
        packed: Any = other.in_proj_weight.chunk(3) if other._qkv_same_embed_dim else None
        weights = packed or (other.q_proj_weight, other.k_proj_weight, other.v_proj_weight)
        biases = (None,) * 3 if other.in_proj_bias is None else other.in_proj_bias.chunk(3)
        linears = (self.linear_Q, self.linear_K, self.linear_V, self.out_proj)
        for linear, w, b in zip(linears, (*weights, other.out_proj.weight), (*biases, other.out_proj.bias)):
            linear.weight = nn.Parameter(w.detach().clone())
            linear.bias = None if b is None else nn.Parameter(b.detach().clone())  # type: ignore[assignment]
        if other.bias_k is not None and other.bias_v is not None:
            self.bias_k, self.bias_v = (nn.Parameter(b.detach().clone()) for b in (other.bias_k, other.bias_v))
