"""Pools, means, interpolation and copies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.torch.bench.cases.case import SMALL, Recipe, activation, laid_out

Settings = dict[str, Any]
POOLS: dict[int, tuple[tuple[str, Settings], ...]] = {
    dims: (
        (f"max_pool{dims}d", {"kernel_size": 3, "stride": 2, "padding": 1}),
        (f"max_pool{dims}d", {"kernel_size": 2, "ceil_mode": True, "dilation": 2, "stride": 1}),
        (f"avg_pool{dims}d", {"kernel_size": 3, "stride": 2, "padding": 1}),
        (f"avg_pool{dims}d", {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False, "ceil_mode": True}),
        (f"adaptive_avg_pool{dims}d", {"output_size": 1}),
        (f"adaptive_avg_pool{dims}d", {"output_size": 3}),
        (f"adaptive_max_pool{dims}d", {"output_size": 3}),
    )
    for dims in (1, 2, 3)
}
ON_4D: tuple[tuple[str, Settings], ...] = (
    ("avg_pool2d", {"kernel_size": (3, 2), "divisor_override": 5}),
    ("avg_pool2d", {"kernel_size": 3, "padding": 1, "count_include_pad": False}),
    ("mean", {"dim": (2, 3)}),
    ("mean", {"dim": [-2, -1], "keepdim": True}),
    ("mean", {"dim": 1}),
    ("mean", {}),
    ("sum", {"dim": (2, 3)}),
    ("sum", {"dim": 1, "keepdim": True}),
    ("sum", {}),
    *((name, settings) for name in ("amax", "amin") for settings in ({"dim": (2, 3)}, {"dim": 1, "keepdim": True}, {})),
    ("interpolate", {"scale_factor": 2}),
    ("interpolate", {"size": (5, 11), "mode": "nearest"}),
    ("interpolate", {"scale_factor": 2.0, "mode": "bilinear", "align_corners": False}),
    ("interpolate", {"size": (5, 11), "mode": "bilinear", "align_corners": True}),
    ("interpolate", {"scale_factor": 1.5, "mode": "bicubic"}),
    ("pad", {"pad": (1, 2, 0, 1)}),
    ("pad", {"pad": (1, -2), "value": 0.4}),
    ("pad", {"pad": (1, 2, 2, 1), "mode": "reflect"}),
    ("pad", {"pad": (1, 2, 2, 1), "mode": "replicate"}),
    ("pad", {"pad": (1, 2, 2, 1), "mode": "circular"}),
    ("pixel_shuffle", {"upscale_factor": 2}),
    ("pixel_unshuffle", {"downscale_factor": 3}),
    ("channel_shuffle", {"groups": 4}),
    ("flatten", {"start_dim": 1}),
    ("reshape", {"shape": (2, -1)}),
    ("permute", {"dims": (0, 2, 3, 1)}),
    ("transpose", {"dim0": 1, "dim1": 2}),
    ("unsqueeze", {"dim": 1}),
    ("squeeze", {}),
    ("narrow", {"dim": 1, "start": 2, "length": 3}),
    ("select", {"dim": 2, "index": -1}),
    ("getitem", {"index": (slice(None), slice(1, 5, 2), Ellipsis, 0)}),
    ("getitem", {"index": (slice(None), None, [0, 2])}),
    ("repeat", {"sizes": (2, 1, 1, 3)}),
    ("expand", {"sizes": (2, 8, 6, 9)}),
    ("contiguous", {}),
    ("detach", {}),
    ("identity", {}),
    ("flip", {"dims": (2,)}),
    ("roll", {"shifts": 1, "dims": (3,)}),
    ("unflatten", {"dim": 1, "sizes": (2, 4)}),
    ("chunk", {"chunks": 3, "dim": 1}),
    ("split", {"split_size_or_sections": 3, "dim": 1}),
    ("unbind", {"dim": 1}),
    ("tensor_split", {"indices_or_sections": 3, "dim": 1}),
    ("tensor_split", {"indices_or_sections": (2, 3), "dim": -1}),
    ("repeat_interleave", {"repeats": 2, "dim": 1}),
    ("diagonal", {"offset": 1, "dim1": 2, "dim2": 3}),
    *((name, {"diagonal": 1}) for name in ("tril", "triu")),
    ("unfold", {"kernel_size": 2, "padding": 1, "stride": 2}),
    ("unfold", {"kernel_size": (3, 2), "dilation": 2}),
    ("unfold_dimension", {"dimension": 2, "size": 2, "step": 2}),
)


def shape_recipes(high: int, extreme: bool) -> Iterator[Recipe]:
    for dims, rows in POOLS.items():
        for layout in ("", "channels_last", "view"):
            x = partial(_in, (2, 8, *SMALL[dims]), layout, high, extreme)
            yield from (Recipe(op, f"{layout} {settings}".strip(), (x,), settings) for op, settings in rows)
        if dims == 2:
            unbatched = partial(activation, (8, *SMALL[dims]), high, extreme)
            yield from (Recipe(op, f"unbatched {s}", (unbatched,), s) for op, s in rows)
    for mode, dims in (("nearest", 1), ("nearest", 3), ("linear", 1), ("trilinear", 3), ("nearest-exact", 2)):
        x = partial(activation, (2, 8, *SMALL[dims]), high)
        yield Recipe("interpolate", f"{mode} {dims}-d", (x,), {"scale_factor": 2.0, "mode": mode})
    for layout in ("", "channels_last", "view"):
        x = partial(_in, (2, 8, 6, 9), layout, high, extreme)
        yield from (Recipe(op, f"{layout} {settings}".strip(), (x,), settings) for op, settings in ON_4D)
    x = partial(activation, (2, 8, 6, 9), high, extreme)
    yield Recipe("index_select", "channels", (x,), {"dim": 1, "index": torch.tensor([5, 0, 2])})
    channels = torch.arange(2 * 6 * 9).mul(5).remainder(8).reshape(2, 1, 6, 9)
    yield Recipe("gather", "one channel", (x,), {"dim": 1, "index": channels})
    yield Recipe("pad", "1-d reflect", (partial(activation, (2, 8, 11), high),), {"pad": (2, 1), "mode": "reflect"})


def _in(shape: tuple[int, ...], layout: str, high: int, extreme: bool) -> Tensor:
    return laid_out(activation(shape, high, extreme), layout)
