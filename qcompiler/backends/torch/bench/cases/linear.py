"""Linear layers, products of matrices, and ops with weights and what follows them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from qcompiler.backends.torch.bench.cases.case import Int8, Recipe, activation, fixed, laid_out, weight

BIAS = partial(torch.randn, 19)
LEADS: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("plain", (5,)), ("leading dimensions", (2, 3)), ("no batch", (0,)), ("one row", (1,)), ("vector", ()),
)  # fmt: skip


def linear_recipes(high: int, extreme: bool) -> Iterator[Recipe]:
    for axis in (None, 0):
        w = partial(weight, (19, 37), axis, extreme)
        for label, lead in LEADS:
            yield Recipe("linear", f"{label}, {axis}", (partial(activation, (*lead, 37), high, extreme), w, BIAS))
        yield Recipe("linear", f"view, relu, {axis}", (partial(_turned, high, extreme), w, fixed(None)), {"bounds": (0.0, None)})
    left, right = partial(activation, (3, 8, 20), high, extreme), partial(activation, (3, 20, 7), high, extreme, 0.01)
    yield Recipe("matmul", "plain", (left, right))
    left, right = partial(activation, (2, 3, 8, 20), high), partial(activation, (20, 7), high, False, 0.01)
    yield Recipe("matmul", "broadcast", (left, right))


def _turned(high: int, extreme: bool) -> Tensor:
    return activation((37, 6), high, extreme).transpose(0, 1)


# (label, layout of what is added, settings)
RESIDUALS: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("plain", "", {}),
    ("relu, view", "view", {"bounds": (0.0, None)}),
    ("clamp, channels_last", "channels_last", {"bounds": (-1.0, 2.0)}),
    ("no batch", "empty", {}),
    ("unbatched, relu", "unbatched", {"bounds": (0.0, None)}),
    ("one value a channel", "spread", {}),
)


def epilogue_recipes(high: int, extreme: bool) -> Iterator[Recipe]:
    for axis in (None, 0):
        for label, lead in (entry for entry in LEADS if entry[0] != "one row"):
            x, w = partial(activation, (*lead, 37), high, extreme), partial(weight, (19, 37), axis, extreme)
            yield Recipe("linear_leaky_relu", f"{label}, {axis}", (x, w, BIAS), {"negative_slope": 0.1})
            yield Recipe("linear_tanh", f"{label}, {axis}", (x, partial(_small_weight, axis, extreme), BIAS))
        for label, layout, bounds in RESIDUALS:
            x = partial(_cut, (2, 8, 9, 7), layout, high, extreme, 0.02)
            other = partial(_cut, (2, 12, 5, 4), layout, high, extreme, 0.3)
            w = partial(weight, (12, 8, 3, 3), axis, extreme)
            settings = {"stride": 2, "padding": 1, **bounds}
            yield Recipe("conv2d_add", f"{label}, {axis}", (x, w, partial(torch.randn, 12), other), settings)


def _small_weight(axis: int | None, extreme: bool) -> Int8:
    """Sums that do not leave the part where tanh is steep."""
    w = weight((19, 37), axis, extreme)
    return Int8(w.values, w.scale / 20, w.zero_point, axis)


def _cut(shape: tuple[int, ...], layout: str, high: int, extreme: bool, scale: float) -> Tensor:
    """A tensor in its layout; what is added (12 channels) may be one value a channel."""
    x = activation(shape, high, extreme, scale)
    if layout in ("unbatched", "empty"):
        return x[0] if layout == "unbatched" else x[:0]
    if shape[1] != 12:
        return x
    return x[:, :, :1, :1] if layout == "spread" else laid_out(x, layout)
