"""Convolutions and transposed ones, of 1 to 3 dimensions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.torch.bench.cases.case import SMALL, Recipe, activation, laid_out, weight

# (label, in, out, kernel, settings, layout)
CONVS: tuple[tuple[str, int, int, int, dict[str, Any], str], ...] = (
    ("plain", 8, 12, 3, {"padding": 1}, ""),
    ("pointwise", 16, 24, 1, {}, "channels_last"),
    ("groups", 8, 12, 3, {"groups": 4, "stride": 2, "padding": 1}, ""),
    ("depthwise", 16, 16, 3, {"groups": 16, "padding": 1}, "channels_last"),
    ("depthwise stride 2, 5 wide", 16, 16, 5, {"groups": 16, "padding": 2, "stride": 2}, ""),
    ("depthwise twice the channels", 16, 32, 3, {"groups": 16, "padding": 1}, ""),
    ("depthwise dilated", 16, 16, 3, {"groups": 16, "padding": 2, "dilation": 2}, ""),
    ("depthwise unpadded", 16, 16, 3, {"groups": 16}, ""),
    ("depthwise 12 channels", 12, 12, 3, {"groups": 12, "padding": 1}, ""),
    ("6 groups of 4, not whole vectors", 24, 24, 3, {"groups": 6, "padding": 1}, ""),
    ("5 groups of 4, a prime number", 20, 20, 3, {"groups": 5, "stride": 2, "padding": 1}, "channels_last"),
    ("12 groups of 2, not whole vectors", 24, 24, 3, {"groups": 12, "padding": 1}, ""),
    ("depthwise 116 channels", 116, 116, 3, {"groups": 116, "padding": 1}, "channels_last"),
    ("depthwise 128 channels", 128, 128, 3, {"groups": 128, "padding": 1}, "channels_last"),
    ("dilated, odd channels", 7, 5, 3, {"dilation": 2}, ""),
    ("transposed view", 6, 5, 3, {"padding": "same"}, "view"),
    ("no batch", 6, 5, 3, {"padding": 1}, "empty"),
    ("relu", 6, 8, 3, {"padding": 1, "bounds": (0.0, None)}, ""),
    ("clamp", 6, 8, 3, {"padding": 1, "bounds": (-0.5, 1.5)}, ""),
    ("unbatched", 6, 5, 3, {"padding": 1}, "unbatched"),
    ("padding mode", 6, 8, 3, {"padding": (1,), "padding_mode": "reflect"}, ""),
)
TRANSPOSES: tuple[tuple[str, int, int, int, dict[str, Any], str], ...] = (
    ("equal channels", 8, 8, 3, {}, ""),
    ("more out", 8, 12, 3, {"stride": 2, "padding": 1}, ""),
    ("more in", 12, 8, 2, {"stride": 2}, "channels_last"),
    ("one channel out", 8, 1, 2, {"stride": 2}, ""),
    ("output padding", 8, 8, 3, {"stride": 2, "padding": 1, "output_padding": 1}, ""),
    ("output padding alone", 8, 6, 2, {"stride": 2, "output_padding": 1}, ""),
    ("kernel below stride", 8, 6, 2, {"stride": 3}, ""),
    ("padding above stride", 8, 6, 5, {"stride": 2, "padding": 3}, ""),
    ("padding above kernel", 8, 6, 1, {"padding": 1}, ""),
    ("wide stride", 6, 5, 8, {"stride": 4, "padding": 2}, "channels_last"),
    ("groups", 8, 8, 3, {"groups": 2}, ""),
    ("groups, more out", 8, 16, 4, {"groups": 2, "stride": 2, "padding": 1}, ""),
    ("depthwise", 16, 16, 4, {"groups": 16, "stride": 2, "padding": 1}, "channels_last"),
    ("depthwise, stride 1", 16, 16, 3, {"groups": 16, "padding": 1}, "channels_last"),
    ("depthwise, 116 channels", 116, 116, 2, {"groups": 116, "stride": 2}, "channels_last"),
    ("dilated", 8, 8, 3, {"dilation": 2, "padding": 1, "output_padding": 1}, "view"),
    ("dilated with a stride", 8, 8, 3, {"dilation": 2, "stride": 2}, ""),
    ("no batch", 8, 8, 3, {}, "empty"),
    ("relu", 8, 8, 3, {"bounds": (0.0, None)}, ""),
    ("unbatched", 8, 8, 3, {"stride": 2}, "unbatched"),
)


def conv_recipes(high: int, extreme: bool) -> Iterator[Recipe]:
    for dims in (1, 2, 3):
        for transposed, rows in ((False, CONVS), (True, TRANSPOSES)):
            for label, cin, cout, k, settings, layout in rows:
                groups = settings.get("groups", 1)
                shape = ((cin, cout // groups) if transposed else (cout, cin // groups)) + (k,) * dims
                if "padding_mode" in settings:  # the float form wants a tuple here, as modules have it
                    settings = {**settings, "padding": (1,) * dims}
                x = partial(_input, dims, (cin, k), layout, high, extreme)
                bias = partial(_bias, None if "odd" in label else cout)
                for axis in (None, 1 if transposed else 0):
                    name = f"conv_transpose{dims}d" if transposed else f"conv{dims}d"
                    kind = "per tensor" if axis is None else "per channel"
                    yield Recipe(name, f"{label}, {kind}", (x, partial(weight, shape, axis, extreme), bias), settings)


def _input(dims: int, window: tuple[int, int], layout: str, high: int, extreme: bool) -> Tensor:
    channels, k = window
    size = SMALL[dims] if k < 5 else tuple(s + 3 for s in SMALL[dims])
    x = laid_out(activation((0 if layout == "empty" else 2, channels, *size), high, extreme), layout)
    return x[0] if layout == "unbatched" else x


def _bias(channels: int | None) -> Tensor | None:
    return None if channels is None else torch.randn(channels) * 0.1
