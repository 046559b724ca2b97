"""Statements that look at data. Limits lie in the middle between what two ways need, so that rounding takes no other way."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tests.grammar.network import Draw, Made, rule, spatial

HALF_WAY = 2 * math.sqrt(2)  # a value that is halved until it is below its size over this is halved twice


def layer(draw: Draw, x: Tensor) -> nn.Module | None:
    """A module that keeps the shape."""
    if spatial(x):
        made: nn.Module = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[x.dim() - 3](x.shape[1], x.shape[1], 1)
        return made
    return nn.Linear(x.shape[-1], x.shape[-1]) if x.dim() == 2 else None


def size(x: Tensor) -> float:
    return float(x.abs().max())


@rule(1, branches=True)
def while_loop(draw: Draw, x: Tensor) -> Made | None:
    limit = size(x) / HALF_WAY

    def halved(v: Tensor) -> Tensor:
        while v.abs().max() > limit:
            v = v / 2
        return v

    def halved_in_place(v: Tensor) -> Tensor:
        y = v.clone()
        while y.abs().max() > limit:
            y *= 0.5
        return y + v

    return (None, draw.pick(halved, halved_in_place)) if limit > 0.01 else None


@rule(1, branches=True)
def while_with_module(draw: Draw, x: Tensor) -> Made | None:
    part = layer(draw, x)

    def rounds(part: nn.Module, v: Tensor) -> Tensor:
        n = 0
        while n < 3 and v.numel() > 0 and v.abs().max() >= 0:
            v, n = torch.tanh(part(v)), n + 1
        return v * n

    return None if part is None else (part, rounds)


@rule(1, branches=True)
def range_of_number(draw: Draw, x: Tensor) -> Made | None:
    if size(x) < 0.01:
        return None
    factor = 2.5 / size(x)

    def rounds(v: Tensor) -> Tensor:
        for i in range(int(v.abs().max() * factor)):
            v = v * 0.5 + i
        return v

    def summed(v: Tensor) -> Tensor:
        return sum(v * (i + 1) for i in range(int(v.abs().max() * factor)))  # type: ignore[return-value]

    return None, draw.pick(rounds, summed)


@rule(1, branches=True)
def appended(draw: Draw, x: Tensor) -> Made | None:
    limit = size(x) / 2

    def joined(v: Tensor) -> Tensor:
        out = [v]
        for i in range(2):
            if v.abs().max() > limit * (2 * i + 1) * 0.9:
                out.append(v * (i + 0.5))
            else:
                out.append(-v)
        return torch.cat(out, 1)

    def summed(v: Tensor) -> Tensor:
        out = []
        if (v.abs() > limit).any():
            out.append(v + 1)
        out.append(v)
        return torch.stack(out).sum(0)

    return (None, draw.pick(joined, summed)) if limit > 0.01 else None


@rule(1, branches=True)
def tried(draw: Draw, x: Tensor) -> Made | None:
    limit, known = size(x) * draw.pick(0.5, 2.0), {True: 0.5}

    def caught(v: Tensor) -> Tensor:
        try:
            factor = known[bool(v.abs().max() > limit)]
        except KeyError:
            factor = 2.0
        return v * factor

    return (None, caught) if limit > 0.01 else None


@rule(1, branches=True)
def masked_max(draw: Draw, x: Tensor) -> Made | None:
    def of_mask(v: Tensor) -> Tensor:  # the largest is in it, however v is rounded: a mean alone may be above all that it is of
        return v - v[v >= v.mean() - 0.1 * v.abs().max()].max()

    def of_where(v: Tensor) -> Tensor:
        found = v[torch.where(v >= v.mean() - 0.1 * v.abs().max())]
        return v * torch.tanh(found.mean())

    return None, draw.pick(of_mask, of_where)


@rule(1, branches=True)
def early_return(draw: Draw, x: Tensor) -> Made | None:
    limit, part = size(x) * draw.pick(0.5, 2.0), layer(draw, x)

    def returned(v: Tensor) -> Tensor:
        if v.abs().max() > limit:
            return v * 0.5
        return torch.relu(v)

    def with_module(part: nn.Module, v: Tensor) -> Tensor:
        if v.abs().max() > limit:
            return torch.relu(part(v))
        v = v + 1
        return v * 2

    if limit < 0.01:
        return None
    return (None, returned) if part is None else (part, with_module)


@rule(1, branches=True)
def condition(draw: Draw, x: Tensor) -> Made | None:
    limit = size(x) * draw.pick(0.5, 2.0)

    def assigned(v: Tensor) -> Tensor:
        y = v
        if v.abs().max() > limit:
            y = v.clone()
            y[:, 0] = 0.25
        else:
            y = y * 1.5
        return y

    def broken(v: Tensor) -> Tensor:
        for factor in (0.75, 0.5, 0.25):
            v = v * factor
            if v.abs().max() < limit:
                break
        return v

    def chosen(v: Tensor) -> Tensor:
        return v * {"large": 0.5, "small": 1.5}["large" if float(v.abs().max()) > limit else "small"]

    return (None, draw.pick(assigned, broken, chosen)) if limit > 0.01 else None


@rule(1, branches=True)
def number_from_data(draw: Draw, x: Tensor) -> Made | None:
    if x.shape[1] < 2:
        return None

    def bound(v: Tensor) -> Tensor:
        n = int((v.abs() >= 0).float().mean() * v.size(1) + 0.5)
        return v[:, : n - 1]

    def item(v: Tensor) -> Tensor:
        return v / (v.abs().max().item() + 1)

    def square(v: Tensor) -> Tensor:
        largest = math.sqrt(float(v.detach().numpy().max()) ** 2 + 1)
        return v.clamp(-largest, largest)

    return None, draw.pick(bound, item, square)
