"""Reductions over one or several dimensions, to one number, and what is read beside them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.grammar.network import Draw, Made, rule


def dims_of(draw: Draw, x: Tensor) -> tuple[int, ...]:
    """One or more dimensions behind the batch."""
    behind = range(1, x.dim())
    return tuple(sorted(draw.rng.sample(behind, draw.rng.randint(1, len(behind)))))


@rule(3)
def reduced(draw: Draw, x: Tensor) -> Made | None:
    """Over some dimensions, which stay with one element; the value itself may stand beside the result."""
    dims = dims_of(draw, x)
    if torch.Size([x.shape[d] for d in dims]).numel() < 2:
        return None
    function: Any = draw.pick(
        lambda v: v.sum(dims, keepdim=True) * 0.1, lambda v: v.mean(dims, keepdim=True), lambda v: v.amax(dims, keepdim=True),
        lambda v: v.amin(dims, keepdim=True), lambda v: v.std(dims, keepdim=True), lambda v: v.var(dims, correction=0, keepdim=True),
        lambda v: v.norm(p=2, dim=dims, keepdim=True), lambda v: torch.logsumexp(v, dims, keepdim=True),
        lambda v: v.abs().sum(dims, keepdim=True).log1p(),
        lambda v: torch.linalg.vector_norm(v, dim=dims, keepdim=True), lambda v: v.square().mean(dims, keepdim=True).sqrt(),
        lambda v: v.norm(p=1, dim=dims, keepdim=True) * 0.1, lambda v: v.tanh().prod(dims[-1], keepdim=True),
    )  # fmt: skip
    return None, draw.pick(
        function, lambda v: v - function(v), lambda v: v * torch.sigmoid(function(v)), lambda v: v + function(v).expand_as(v)
    )


@rule(1)
def reduced_away(draw: Draw, x: Tensor) -> Made | None:
    """Dimensions that go."""
    dims = dims_of(draw, x)
    if len(dims) == x.dim() - 1:
        dims = dims[1:]
    if not dims:
        return None
    return None, draw.pick(lambda v: v.mean(dims), lambda v: v.sum(dims) * 0.1, lambda v: v.amax(dims), lambda v: v.max(dims[0])[0])


@rule(1)
def one_number(draw: Draw, x: Tensor) -> Made | None:
    """Of all values, and tensors of one element without dimensions."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain, self.bias = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor([0.3]))
            self.register_buffer("unit", torch.tensor(0.05))

    return Part(), draw.pick(
        lambda part, v: v * part.gain.exp(), lambda part, v: v * part.gain + part.bias, lambda part, v: v / part.unit * 0.1,
        lambda part, v: v - v.mean() * part.gain, lambda part, v: v / (v.abs().max() + 1),
        lambda part, v: torch.sigmoid(v * part.gain + part.bias),
        lambda part, v: part.gain * v + (1 - part.gain) * v.relu(), lambda part, v: torch.where(v > part.unit, v, part.bias),
        lambda part, v: v + torch.stack([part.gain, part.gain * 2]).sum(), lambda part, v: v * torch.tensor(0.5) + torch.full((), 0.25),
        lambda part, v: v.clamp(-part.gain.abs(), part.gain.abs() * 2), lambda part, v: torch.lerp(v, v.relu(), part.gain),
    )  # fmt: skip


@rule(1)
def soft(draw: Draw, x: Tensor) -> Made | None:
    """Softmax and its kin along any dimension, at other temperatures."""
    dims = [d for d in range(1, x.dim()) if x.shape[d] > 1]
    if not dims:
        return None
    dim = draw.rng.choice(dims)
    return None, draw.pick(
        lambda v: v.softmax(dim), lambda v: (v * 3).softmax(dim), lambda v: v.log_softmax(dim), lambda v: F.softmin(v, dim),
        lambda v: v.softmax(dim) * v, lambda v: (v / 0.5).softmax(dim).cumsum(dim),
        lambda v: F.cosine_similarity(v, v.roll(1, dim), dim, 0.1).unsqueeze(dim),
        lambda v: v.exp() / v.exp().sum(dim, keepdim=True), lambda v: (v - v.amax(dim, keepdim=True)).exp(), lambda v: v.cumsum(dim) * 0.2,
    )  # fmt: skip
