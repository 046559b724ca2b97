"""Arithmetic of two values, and joins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.torch.bench.cases.case import Recipe, activation, fixed, laid_out, several

SHAPE = (2, 8, 6, 5)
Draw = Callable[[], Any]


def _others(high: int, extreme: bool) -> dict[str, Draw]:
    """Second operands of a (2, 8, 6, 5) value."""
    plain = partial(activation, SHAPE, high, extreme, 0.03)
    return {
        "plain": plain,
        "channels_last": partial(_as, plain, "channels_last"),
        "per channel": partial(activation, (2, 8, 1, 1), high, extreme, 0.03),
        "row": partial(activation, (5,), high, extreme, 0.03),
        "view": partial(_as, plain, "view"),
        "number": fixed(0.7),
        "float tensor": _factors,
    }


def _as(draw: Draw, layout: str) -> Tensor:
    return laid_out(draw(), layout)


def _factors() -> Tensor:
    return torch.rand(8, 1, 1) + 0.5


def _empty(draw: Draw) -> Tensor:
    value: Tensor = draw()[:0]
    return value


def _positive(high: int) -> Tensor:
    return activation(SHAPE, high, False, 0.03, 0).clamp(0.3, 9.0)


def binary_recipes(high: int, extreme: bool) -> Iterator[Recipe]:
    a, others = partial(activation, SHAPE, high, extreme), _others(high, extreme)
    for op in ("add", "sub", "mul"):
        for label, b in others.items():
            yield Recipe(op, label, (a, b))
            yield Recipe(op, f"{label}, relu", (a, b), {"bounds": (0.0, None)})
        yield Recipe(op, "both broadcast", (others["per channel"], partial(activation, (2, 1, 6, 5), high)))
        yield Recipe(op, "small first", (others["per channel"], a))
        yield Recipe(op, "number first", (fixed(1.5), a))
        if op != "sub":
            yield Recipe(op, "float tensor first", (_factors, a))
        yield Recipe(op, "no batch", (partial(_empty, a), partial(_empty, others["plain"])))
    yield Recipe("add", "alpha", (a, others["plain"]), {"alpha": 2})
    yield Recipe("add", "clamp", (a, others["plain"]), {"bounds": (-0.5, 1.0)})
    yield Recipe("div", "number", (a, fixed(3.0)))
    yield Recipe("div", "tensor", (a, partial(_positive, high)))
    yield Recipe("div", "number first", (fixed(2.0), partial(_positive, high)))
    for op in ("maximum", "minimum"):
        yield from (Recipe(op, label, (a, others[label])) for label in ("plain", "view", "per channel", "float tensor"))
        yield Recipe(op, "float tensor first", (_factors, a))


def join_recipes(high: int, extreme: bool) -> Iterator[Recipe]:
    a, others = partial(activation, SHAPE, high, extreme), _others(high, extreme)
    for dim in (1, -1, 0):
        yield Recipe("cat", f"dim {dim}", (several(a, others["plain"], others["channels_last"]),), {"dim": dim})
        yield Recipe("stack", f"dim {dim}", (several(a, others["plain"]),), {"dim": dim})
    yield Recipe("cat", "shared scale", (partial(_twice, a),), {"dim": 1})


def _twice(draw: Draw) -> list[Tensor]:
    return [draw()] * 2
