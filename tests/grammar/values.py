"""Steps on values of any shape: activations, pieces, views, masks, what is changed in place."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.grammar.network import Draw, Made, rule, spatial

ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    F.relu, torch.relu, F.relu6, F.hardswish, F.silu, F.gelu, F.mish, F.softplus, torch.sigmoid, torch.tanh, F.hardsigmoid, F.elu,
    lambda v: F.leaky_relu(v, 0.1), lambda v: v.clamp(-1, 1.5), lambda v: v.clamp(min=0), lambda v: F.hardtanh(v, -0.5, 2.0), torch.erf,
    torch.abs,
    lambda v: v.square(), lambda v: v.neg(), torch.sin, lambda v: v.clone().relu_(), lambda v: (v + 0.5).clamp_(-1, 2), F.selu,
)  # fmt: skip


@rule(6)
def activation(draw: Draw, x: Tensor) -> Made | None:
    return None, draw.rng.choice(ACTIVATIONS)


@rule(2)
def scalar(draw: Draw, x: Tensor) -> Made | None:
    return None, draw.pick(lambda v: v + 1, lambda v: 2 - v * 0.5, lambda v: v / 3, lambda v: v * 2.0, lambda v: v - 0.25)


@rule(1)
def softmax(draw: Draw, x: Tensor) -> Made | None:
    return (None, lambda v: v.softmax(-1)) if x.shape[-1] > 1 else None


@rule(2)
def cut(draw: Draw, x: Tensor) -> Made | None:
    """Slices, pieces and indices of a dimension that is not the batch."""
    dims = [d for d in range(1, x.dim()) if x.shape[d] >= 2]
    if not dims:
        return None
    dim = draw.rng.choice(dims)
    return None, draw.pick(
        lambda v: v.narrow(dim, 1, v.size(dim) - 1), lambda v: v.chunk(2, dim)[0], lambda v: torch.cat(v.chunk(2, dim)[::-1], dim),
        lambda v: v.split([1, v.size(dim) - 1], dim)[1], lambda v: v.index_select(dim, torch.tensor([1, 0])), lambda v: v.flip(dim),
        lambda v: v[:, ..., :-1] if dim == v.dim() - 1 else v[:, 1:], lambda v: v.roll(1, dim),
    )  # fmt: skip


@rule(1)
def views(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() <= 2:
        return None, lambda v: v.unsqueeze(-1).squeeze(-1)
    return None, draw.pick(
        lambda v: v.unsqueeze(1).squeeze(1), lambda v: v.contiguous(), lambda v: v.reshape(v.size(0), -1, v.size(-1)).view(v.shape),
        lambda v: v.transpose(-1, -2).transpose(-1, -2), lambda v: torch.stack([v, v], -1).mean(-1),
        lambda v: v.unsqueeze(1).expand(-1, 2, *v.shape[1:])[:, 0],
    )  # fmt: skip


@rule(1)
def mask(draw: Draw, x: Tensor) -> Made | None:
    return None, draw.pick(lambda v: torch.where(v > 0, v, v * 0.3), lambda v: v.masked_fill(v < -1, 0.0), lambda v: v * (v > 0).float())


@rule(1)
def assign(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() < 2 or x.shape[1] < 2:
        return None

    def assigned(v: Tensor) -> Tensor:
        made = v.clone()
        made[:, 0] = 0.25
        return made

    return None, assigned


@rule(1)
def reduce(draw: Draw, x: Tensor) -> Made | None:
    return (None, draw.pick(lambda v: v - v.mean(-1, keepdim=True), lambda v: v.amax(-1, keepdim=True) + v)) if x.shape[-1] > 1 else None


@rule(1)
def parameter(draw: Draw, x: Tensor) -> Made | None:
    channels = x.shape[1] if spatial(x) else x.shape[-1]

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shape = [1, channels, *[1] * (x.dim() - 2)] if spatial(x) else [channels]
            self.scale, self.shift = nn.Parameter(torch.randn(shape) * 0.3 + 1), nn.Parameter(torch.randn(shape) * 0.3)

    return Part(), draw.pick(lambda part, v: v * part.scale + part.shift, lambda part, v: v + part.shift)


def own(draw: Draw, x: Tensor) -> bool:
    """Whether it may be changed in place: not where it shares memory with what the caller gave."""
    return all(x.untyped_storage().data_ptr() != given.untyped_storage().data_ptr() for given in draw.values[: draw.given])


@rule(3)
def in_place(draw: Draw, x: Tensor) -> Made | None:
    """Changes a value that others read as well, itself or through a view."""
    if x.dim() < 2 or not own(draw, x) or any(a == 0 and n > 1 for a, n in zip(x.stride(), x.shape)):
        return None

    def item(v: Tensor) -> Tensor:
        v[:, -1] = v[:, 0] * 0.5
        return v

    def through_view(v: Tensor) -> Tensor:
        v.select(1, 0).mul_(0.5)
        return v

    def twice(v: Tensor) -> Tensor:
        y = v + 1
        v += 0.5
        y -= v
        return y + v

    def by_mask(v: Tensor) -> Tensor:
        v[v < -1] = 0.0
        return v

    return None, draw.pick(
        lambda v: v.relu_(), lambda v: v.mul_(0.5), lambda v: v.clamp_(-1, 2), lambda v: F.relu(v, inplace=True), lambda v: v.neg_(),
        lambda v: v.add_(1).tanh_(), lambda v: F.hardtanh(v, inplace=True), item, through_view, twice, by_mask,
    )  # fmt: skip
