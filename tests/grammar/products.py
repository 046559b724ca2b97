"""Products of values with each other and with shared weights; attention with masks, positions, groups and memories."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.grammar.features import wide
from tests.grammar.network import Draw, Made, rule


@rule(2)
def product(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() != 3 or not wide(x) or x.shape[1] > 16:
        return None
    width = x.shape[-1]
    return nn.Linear(width, width), draw.pick(
        lambda part, v: v @ v.mT / width, lambda part, v: torch.bmm(v.mT, part(v)) / 8,
        lambda part, v: torch.einsum("ntc,nsc->nts", part(v), v) * 0.3,
        lambda part, v: torch.einsum("ntc,dc->ntd", v, part.weight), lambda part, v: torch.baddbmm(v, v @ v.mT, v, alpha=0.1),
        lambda part, v: part(v) @ part.weight, lambda part, v: F.linear(part(v).relu(), part.weight.t()),
        lambda part, v: v @ part.weight[:, :2],
        lambda part, v: torch.addmm(part.bias, v.flatten(0, 1), part.weight).view_as(v),
        lambda part, v: (v.unsqueeze(2) * v.unsqueeze(1)).sum(-1) * 0.3,
        lambda part, v: torch.matmul(v[:, 0], part.weight), lambda part, v: torch.einsum("ntc,ntc->nt", v, part(v)),
        lambda part, v: torch.cdist(v, part(v)),
    )  # fmt: skip


@rule(2)
def masked_attention(draw: Draw, x: Tensor) -> Made | None:
    """Scores with a mask of floats or bools, a bias by distance, turned positions, fewer keys than queries have heads."""
    if x.dim() != 3 or x.shape[-1] not in (4, 8, 16) or x.shape[1] > 16:
        return None
    width = x.shape[-1]
    part = nn.ModuleDict({"q": nn.Linear(width, width), "k": nn.Linear(width, width // 2), "v": nn.Linear(width, width // 2)})
    form = draw.pick("float", "bool", "causal", "distance", "groups", "turned", "scaled", "cosine")

    def turned(v: Tensor) -> Tensor:
        half, t = v.shape[-1] // 2, v.shape[-2]
        angle = torch.arange(t).unsqueeze(-1) / (10 ** (torch.arange(half) / max(half, 1)))
        a, b = v[..., :half], v[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

    def attend(part: Any, given: Tensor) -> Tensor:
        n, t, _ = given.shape
        q = part["q"](given).view(n, t, 2, -1).transpose(1, 2)
        k, v = (part[name](given).view(n, t, 1, -1).transpose(1, 2) for name in "kv")
        if form == "groups":
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)
        k, v = k.expand(-1, 2, -1, -1), v.expand(-1, 2, -1, -1)
        if form == "turned" and q.shape[-1] > 1:
            q, k = turned(q), turned(k)
        if form == "cosine":
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * 4
            return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        distance = (torch.arange(t)[:, None] - torch.arange(t)).abs()
        mask: Any = {"float": -distance * 0.2, "bool": distance < 2, "distance": torch.where(distance > 2, -1e4, 0.0)}.get(form)
        mask = mask.to(q.dtype) if mask is not None and mask.dtype is not torch.bool else mask
        scale = 0.3 if form == "scaled" else None
        made = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=form == "causal", scale=scale)
        return made.transpose(1, 2).flatten(2)

    return part, attend


@rule(1)
def with_memory(draw: Draw, x: Tensor) -> Made | None:
    """Attention to learned rows, and layers of decoders."""
    if x.dim() != 3 or x.shape[-1] not in (4, 8, 16) or x.shape[1] > 16:
        return None
    width = x.shape[-1]

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.randn(1, 3, width))
            self.attention = nn.MultiheadAttention(width, 2, batch_first=True, add_bias_kv=draw.pick(True, False))
            self.decoder = nn.TransformerDecoderLayer(width, 2, 16, batch_first=True, norm_first=True)

    def pooled(part: Any, v: Tensor) -> Tensor:
        return part.attention(part.rows.expand(v.size(0), -1, -1), v, v, need_weights=False)[0]  # type: ignore[no-any-return]

    def decoded(part: Any, v: Tensor) -> Tensor:
        return part.decoder(v, part.rows.expand(v.size(0), -1, -1))  # type: ignore[no-any-return]

    def causal(part: Any, v: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(v.size(1))
        return part.attention(v, v, v, attn_mask=mask, need_weights=False)[0]  # type: ignore[no-any-return]

    return Part(), draw.pick(pooled, decoded, causal)


@rule(1)
def tied(draw: Draw, x: Tensor) -> Made | None:
    """One table or weight in two places."""
    if x.dim() != 3 or not wide(x) or x.shape[1] > 16:
        return None
    width = x.shape[-1]
    table = nn.Embedding(16, width)
    return table, draw.pick(
        lambda part, v: (v + part(torch.arange(v.size(1)))) @ part.weight.t(), lambda part, v: F.linear(v, part.weight),
        lambda part, v: v + part.weight[: v.size(1)], lambda part, v: part((v.sum(-1) > 0).long()) + part(torch.zeros(1, dtype=torch.long)),
    )  # fmt: skip


@rule(1)
def bilinear(draw: Draw, x: Tensor) -> Made | None:
    if not wide(x) or x.shape[-1] > 16:
        return None
    return nn.Bilinear(x.shape[-1], x.shape[-1], 4), lambda part, v: part(v, v.tanh())
