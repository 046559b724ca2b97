"""Values written in parts: views of views, lists of places, buffers that a call leaves something in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.grammar.network import Draw, Made, rule
from tests.grammar.values import own


@rule(2)
def written_views(draw: Draw, x: Tensor) -> Made | None:
    """A copy, and views of it that are written; what is read was made before or after."""
    if x.shape[1] < 2 or x.dim() < 2:
        return None

    def turned(v: Tensor) -> Tensor:
        y = v.clone()
        y.transpose(1, -1)[..., 0] += 0.5
        return y

    def halves(v: Tensor) -> Tensor:
        y = v * 1.0
        a, b = y[:, : y.size(1) // 2], y[:, y.size(1) // 2 :]
        a.mul_(0.5)
        b.add_(a.mean(1, keepdim=True))
        return y

    def pieces(v: Tensor) -> Tensor:
        y = v + 0
        for i, piece in enumerate(y.unbind(1)):
            if i < 2:
                piece.copy_(piece.tanh() * (i + 1))
        return y

    def places(v: Tensor) -> Tensor:
        y = v.clone()
        y[:, [0, -1]] = y[:, [-1, 0]] * 0.5
        y[..., -1].fill_(0.25)
        return y

    def flat(v: Tensor) -> Tensor:
        y = v.clone(memory_format=torch.contiguous_format)
        y.view(y.size(0), -1)[:, ::2].clamp_(min=0)
        return y

    def masked(v: Tensor) -> Tensor:
        y = v.clone()
        y.masked_fill_(y < -0.5, -0.5)
        y[y > 1] = 1.0
        return y + v

    def both(v: Tensor) -> Tensor:
        y = v.clone()
        before = y[:, :1] * 2
        y[:, :1].neg_()
        return torch.cat([y, before], 1)

    return None, draw.pick(turned, halves, pieces, places, flat, masked, both)


@rule(1)
def written_by_index(draw: Draw, x: Tensor) -> Made | None:
    if x.shape[1] < 3:
        return None
    index = torch.tensor([0, 2])
    return None, draw.pick(
        lambda v: v.index_fill(1, index, 0.5), lambda v: v.index_copy(1, index, v[:, :2]),
        lambda v: v.index_add(1, index, v[:, 1:3], alpha=0.5),
        lambda v: torch.index_put(v, (torch.arange(v.size(0)),), v * 0.5),
        lambda v: v.scatter(1, torch.zeros_like(v[:, :1]).long(), v[:, 1:2]),
        lambda v: v.scatter_add(1, torch.ones_like(v[:, :1]).long(), v[:, :1]), lambda v: torch.select_scatter(v, v[:, 0] * 2, 1, 1),
        lambda v: torch.slice_scatter(v, v[:, :2] * 0.5, 1, 1, 3), lambda v: v.masked_scatter(v > 0.5, torch.zeros_like(v) + 0.5),
    )  # fmt: skip


@rule(2)
def in_place_views(draw: Draw, x: Tensor) -> Made | None:
    """A value that others read, changed through a view of a view."""
    if x.shape[1] < 2 or x.dim() < 3 or not own(draw, x) or any(a == 0 and n > 1 for a, n in zip(x.stride(), x.shape)):
        return None

    def deep(v: Tensor) -> Tensor:
        v.transpose(1, -1).select(-1, 0).mul_(0.5)
        return v.relu()

    def chunked(v: Tensor) -> Tensor:
        a, _ = v.chunk(2, 1) if v.size(1) > 1 else (v, v)
        a += 0.25
        return v * 2

    def kept(v: Tensor) -> Tensor:
        view = v[:, 1:]
        v.mul_(0.5)
        return view + 1

    return None, draw.pick(deep, chunked, kept)


@rule(1)
def remembered(draw: Draw, x: Tensor) -> Made | None:
    """A buffer that each call writes before it reads it, and one that counts."""
    shape = tuple(x.shape[1:])

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("last", torch.zeros(shape))
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def written(part: Any, v: Tensor) -> Tensor:
        part.last.copy_(v.detach().mean(0))
        return v - part.last

    def counted(part: Any, v: Tensor) -> Tensor:
        part.calls += 1
        return v + part.last * 0.5 + 0.5

    return Part(), draw.pick(written, counted)
