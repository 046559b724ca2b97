"""Rows of products of an op: what it multiplies its weight with, at a seeded sample of the positions of its result."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.ops.spec import Family
from qcompiler.tune.sites import Ints, Site

MOST_ROWS = 16384
LEAST_ROWS, FOR_EACH = 4096, 10  # rows at an op: so many, or so many times its products in a row if that is more


def rows_wanted(products: int, batches: int, most: int = MOST_ROWS) -> int:
    """How many rows a batch should give, for an op of so many products in a row."""
    return max(1, min(max(LEAST_ROWS, FOR_EACH * products), most) // max(batches, 1))


@dataclass(frozen=True)
class Sample:
    """Rows at the same positions of the rounded input and of the float one: (groups, rows, products) each."""

    rounded: Tensor
    floats: Tensor


def sample(site: Site, rounded: Tensor, floats: Tensor, count: int, generator: torch.Generator) -> Sample:
    """About `count` rows of one batch, the same for both inputs."""
    if not site.is_conv:
        rows = rounded.reshape(-1, rounded.shape[-1])
        chosen = _chosen(len(rows), count, generator)
        return Sample(rows[chosen][None], floats.reshape(-1, floats.shape[-1])[chosen][None])
    dims = site.row.dims or 0
    rounded, floats = (x.reshape(-1, *x.shape[-1 - dims :]) for x in (rounded, floats))  # without a batch dimension: a batch of one
    window = _Window.of(site, tuple(rounded.shape[2:]))
    images = len(rounded)
    places = _chosen(math.prod(window.out), max(1, math.ceil(count / max(images, 1))), generator)
    return Sample(*(window.rows(x, places, site.groups) for x in (rounded, floats)))


def _chosen(total: int, count: int, generator: torch.Generator) -> Tensor:
    """Sorted, without repetition; all where there are no more."""
    if total <= count:
        return torch.arange(total)
    return torch.randperm(total, generator=generator)[:count].sort().values


@dataclass(frozen=True)
class _Window:
    """A convolution as sums over a padded image: `steps` between products, `stride` between results, `out` results.

    `between`: a transposed one is a plain one over an image with so many zeros (less one) between its pixels.
    """

    kernel: Ints
    steps: Ints
    stride: Ints
    padding: tuple[Ints, Ints]  # in front, behind
    between: Ints
    out: Ints

    @staticmethod
    def of(site: Site, size: Ints) -> _Window:
        kernel, steps, stride, pad = site.weight.shape[2:], site.setting("dilation"), site.setting("stride"), site.setting("padding")
        reach = tuple(d * (k - 1) for d, k in zip(steps, kernel, strict=True))
        if site.row.family is Family.TRANSPOSED:
            more = site.setting("output_padding")
            front = tuple(r - p for r, p in zip(reach, pad, strict=True))
            behind = tuple(f + m for f, m in zip(front, more, strict=True))
            wide = tuple((s - 1) * b + 1 for s, b in zip(size, stride, strict=True))
            ones = (1,) * len(size)
            return _Window(kernel, steps, ones, (front, behind), stride, _out(wide, reach, ones, front, behind))
        return _Window(kernel, steps, stride, (pad, pad), (1,) * len(size), _out(size, reach, stride, pad, pad))

    def rows(self, x: Tensor, places: Tensor, groups: int) -> Tensor:
        """(groups, images * places, products) of an image (images, channels, ...)."""
        index, inside = self._taps(places, tuple(x.shape[2:]))
        outside = inside.logical_not_().flatten().nonzero()[:, 0]
        made = x.new_empty(groups, len(x), len(places), x.shape[1] // groups, index.shape[1])
        for image, lines in enumerate(x.flatten(2)):  # one at a time, which is half the room; of three dimensions index_select is slow
            found = lines.index_select(1, index.flatten()).index_fill_(1, outside, 0)
            made[:, image] = found.reshape(groups, -1, *index.shape).transpose(1, 2)
        return made.reshape(groups, len(x) * len(places), -1)

    def _taps(self, places: Tensor, size: Ints) -> tuple[Tensor, Tensor]:
        """(places, products of a channel): where in the flat image each product lies, and whether it does: else it is a zero around it or
        between its pixels."""
        taps = torch.tensor(list(itertools.product(*(range(k) for k in self.kernel))))
        index, inside = torch.zeros(len(places), len(taps), dtype=torch.int64), torch.ones(len(places), len(taps), dtype=torch.bool)
        room = 1
        for dim in reversed(range(len(size))):
            starts, places = places % self.out[dim] * self.stride[dim], places // self.out[dim]
            at = starts[:, None] + taps[None, :, dim] * self.steps[dim] - self.padding[0][dim]
            pixel = at // self.between[dim]
            inside &= (at % self.between[dim] == 0) & (pixel >= 0) & (pixel < size[dim])
            index += pixel.clamp(0, size[dim] - 1) * room
            room *= size[dim]
        return index, inside


def _out(size: Ints, reach: Ints, stride: Ints, front: Ints, behind: Ints) -> Ints:
    parts = zip(size, reach, stride, front, behind, strict=True)
    out = tuple((s + f + b - r - 1) // step + 1 for s, r, step, f, b in parts)
    if min(out) < 1:
        raise ValueError(f"its window of {' x '.join(str(r + 1) for r in reach)} is larger than the image of {' x '.join(map(str, size))}")
    return out
