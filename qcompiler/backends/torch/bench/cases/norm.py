"""Normalizations, of rank 2 to 5."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.torch.bench.cases.case import SMALL, Recipe, activation, fixed, laid_out

Draw = Callable[[], Any]
NONE = fixed(None)


def _shifted(size: int, by: float) -> Tensor:
    return torch.rand(size) + by


def norm_recipes(high: int, extreme: bool) -> Iterator[Recipe]:
    gamma, beta = partial(_shifted, 8, 0.5), partial(torch.randn, 8)
    for dims in (0, 1, 2, 3):
        x = partial(activation, (2, 8, *SMALL.get(dims, ())), high, extreme)
        statistics = (partial(torch.randn, 8), partial(_shifted, 8, 0.2))
        yield Recipe("batch_norm", f"{dims}-d", (x, *statistics, gamma, beta), {"eps": 1e-3})
        yield Recipe("batch_norm", f"{dims}-d relu", (x, *statistics, gamma, beta), {"bounds": (0.0, None)})
        yield Recipe("batch_norm", f"{dims}-d plain", (x, *statistics, NONE, NONE))
        yield Recipe("group_norm", f"{dims}-d", (x, gamma, beta), {"num_groups": 2})
        yield Recipe("group_norm", f"{dims}-d plain", (x, NONE, NONE), {"num_groups": 4})
        if dims:
            yield Recipe("instance_norm", f"{dims}-d", (x, gamma, beta))
            yield Recipe("instance_norm", f"{dims}-d view", (partial(_as, x, "view"), NONE, NONE))
            yield from _last(x, dims)
    last = partial(_as, partial(activation, (2, 8, 6, 5), high), "channels_last")
    yield Recipe("group_norm", "channels_last", (last, NONE, NONE), {"num_groups": 2})
    yield Recipe("layer_norm", "channels_last", (last, NONE, NONE), {"normalized_shape": (5,)})


def _last(x: Draw, dims: int) -> Iterator[Recipe]:
    """Norms of the last dimension."""
    size = SMALL[dims][-1]
    weight, shape = partial(torch.rand, size), {"normalized_shape": (size,)}
    yield Recipe("rms_norm", f"{dims}-d", (x, weight), shape)
    yield Recipe("rms_norm", f"{dims}-d plain", (x, NONE), {**shape, "eps": 1e-3})
    yield Recipe("layer_norm", f"{dims}-d", (x, weight, partial(torch.randn, size)), shape)


def _as(draw: Draw, layout: str) -> Tensor:
    return laid_out(draw(), layout)
