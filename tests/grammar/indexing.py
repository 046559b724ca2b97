"""Steps that pick, order and move values: indices, gathers, sorted pieces, windows, loops over pieces."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.grammar.network import MAX_VALUES, Draw, Made, rule, spatial


@rule(2)
def indexed(draw: Draw, x: Tensor) -> Made | None:
    """Items of a dimension by integers, tensors, masks and steps."""
    dims = [d for d in range(1, x.dim()) if x.shape[d] >= 2]
    if not dims:
        return None
    dim = draw.rng.choice(dims)
    front = (slice(None),) * dim
    return None, draw.pick(
        lambda v: v[(*front, [1, 0, 1])], lambda v: v[(*front, torch.tensor([0, 1]))], lambda v: v[(*front, slice(None, None, 2))],
        lambda v: v[(*front, slice(1, None))], lambda v: v[(*front, None)].squeeze(dim), lambda v: v[..., -1:] + v[..., :1],
        lambda v: torch.take_along_dim(v, v.argsort(dim), dim), lambda v: v.gather(dim, v.argmax(dim, keepdim=True)),
        lambda v: v[(*front, torch.arange(v.size(dim)) % 2 == 0)], lambda v: v.index_select(dim, torch.arange(v.size(dim) - 1, -1, -1)),
    )  # fmt: skip


@rule(1)
def ordered(draw: Draw, x: Tensor) -> Made | None:
    if x.shape[-1] < 2:
        return None
    return None, draw.pick(
        lambda v: v.sort(-1).values, lambda v: v.topk(2, -1)[0], lambda v: v.max(-1, keepdim=True)[0] - v, lambda v: v.cumsum(-1),
        lambda v: v.amin(-1, keepdim=True) + v, lambda v: v.kthvalue(1, -1, keepdim=True)[0] * 0.5 + v,
    )  # fmt: skip


@rule(2)
def pieces(draw: Draw, x: Tensor) -> Made | None:
    """Loops over the pieces of a dimension, as many as there are."""
    dim = draw.rng.randrange(1, x.dim())
    if x.shape[dim] > 9:
        return None
    part = nn.Linear(x.shape[-1], x.shape[-1]) if dim != x.dim() - 1 and 2 <= x.shape[-1] <= 32 else None

    def looped(part: nn.Module, v: Tensor) -> Tensor:
        return torch.stack([part(piece) for piece in v.unbind(dim)], dim)

    def summed(v: Tensor) -> Tensor:
        first, *rest = v.split(1, dim)
        for i, piece in enumerate(rest):
            first = first * 0.5 + piece / (i + 1)
        return first

    def turned(v: Tensor) -> Tensor:
        return torch.cat([piece for piece in reversed(v.tensor_split(2, dim)) if piece.size(dim)], dim)

    return (part, looped) if part is not None else (None, draw.pick(summed, turned))


@rule(1)
def repeated(draw: Draw, x: Tensor) -> Made | None:
    if x.numel() * 2 > MAX_VALUES or x.dim() > 4:
        return None
    ones = (1,) * (x.dim() - 2)
    return None, draw.pick(
        lambda v: v.repeat(1, 2, *ones), lambda v: v.repeat_interleave(2, 1), lambda v: v.tile(2),
        lambda v: v.unsqueeze(2).expand(-1, -1, 2, *v.shape[2:]).flatten(1, 2), lambda v: torch.cat([v] * 2, -1),
    )  # fmt: skip


@rule(2)
def windows(draw: Draw, x: Tensor) -> Made | None:
    """Views that cut an image in windows, as Swin's and patch embeddings do, and back."""
    if x.dim() != 4 or x.shape[2] % 2 or x.shape[3] % 2:
        return None

    def merged(v: Tensor) -> Tensor:
        return torch.cat([v[:, :, 0::2, 0::2], v[:, :, 1::2, 0::2], v[:, :, 0::2, 1::2], v[:, :, 1::2, 1::2]], 1)

    def partitioned(v: Tensor) -> Tensor:
        n, c, h, w = v.shape
        return (
            v.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)[: n * (h // 2) * (w // 2)].mean(1).view(n, -1, c)
        )

    def shifted(v: Tensor) -> Tensor:
        n, c, h, w = v.shape
        cut = torch.roll(v, (-1, -1), (2, 3)).view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
        return torch.roll(cut.softmax(3).permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w), (1, 1), (2, 3))

    return None, draw.pick(merged, partitioned, shifted, lambda v: F.unfold(v, 2, stride=2), lambda v: F.pixel_unshuffle(v, 2))


@rule(1)
def triangle(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() < 3:
        return None
    return None, draw.pick(
        lambda v: v.tril(), lambda v: v.masked_fill(torch.ones(v.shape[-2:]).triu(1).bool(), 0.25), lambda v: v * torch.ones_like(v).triu(),
    )  # fmt: skip


@rule(1)
def positions(draw: Draw, x: Tensor) -> Made | None:
    """What is made from sizes: positions as values beside others."""
    if spatial(x) < 1:
        return None

    def coordinates(v: Tensor) -> Tensor:
        row = torch.linspace(-1, 1, v.size(-1)).expand(v.size(0), 1, *v.shape[2:])
        return torch.cat([v, row], 1)

    return None, draw.pick(coordinates, lambda v: v + torch.arange(v.size(-1)) / v.size(-1), lambda v: v + torch.zeros_like(v).add_(0.5))


@rule(1)
def written(draw: Draw, x: Tensor) -> Made | None:
    """Values written into a tensor of zeros, by place, index and mask."""
    if x.shape[1] < 2:
        return None

    def halves(v: Tensor) -> Tensor:
        made = torch.zeros_like(v)
        made[:, ::2] = v[:, ::2] * 0.5
        made[:, 1::2] += v[:, 1::2]
        return made

    def added(v: Tensor) -> Tensor:
        return torch.zeros_like(v).index_add(1, torch.tensor([0, 1]), v[:, :2])

    def scattered(v: Tensor) -> Tensor:
        return torch.zeros_like(v).scatter(1, v.argmax(1, keepdim=True), 1.0) * v

    return None, draw.pick(halves, added, scattered)


@rule(2)
def whole_numbers(draw: Draw, x: Tensor) -> Made | None:
    """Integers that sizes settle, as results or as rows of tables."""

    def places(v: Tensor) -> Tensor:
        return torch.arange(v.size(1)).expand(v.size(0), -1) % 4

    return None, draw.pick(
        places, lambda v: places(v).sort(-1, descending=True)[0], lambda v: places(v).topk(1, -1)[0], lambda v: places(v).flip(1),
        lambda v: places(v).max(-1, keepdim=True)[0], lambda v: places(v).clamp(1, 3), lambda v: places(v) * places(v) % 5,
        lambda v: places(v).cumsum(1) % 7, lambda v: places(v).gather(1, places(v)[:, :1] * 0), lambda v: torch.cat([places(v)] * 2, 1),
        lambda v: torch.where(places(v) > 1, places(v), 1), lambda v: places(v).argsort(-1) % 4, lambda v: places(v)[:, ::2] + 1,
    )  # fmt: skip
