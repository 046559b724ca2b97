"""What is to be known of the rows of products at an op: sums over them, batch by batch, so that no row is kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.stages.arguments import Bounds
from qcompiler.tune.rounding import Moments
from qcompiler.tune.sampled_rows import Sample

MOST_PRODUCTS = 4096  # of a row that is taken in one piece: the time to round it grows as their cube
HALVED = 2**20  # sums up to which halves of the data are told apart: it takes their memory once more
PIECE = 2**18  # sums that are added to at once


def blocks_of(products: int) -> int:
    """In how many pieces a row is taken."""
    return -(-products // MOST_PRODUCTS)


def in_blocks(rows: Tensor) -> Tensor:
    """(groups * blocks, n, products of a block) of (groups, n, products), with zeros at the end of the last block."""
    groups, n, products = rows.shape
    blocks = blocks_of(products)
    if blocks == 1:
        return rows
    wide = torch.nn.functional.pad(rows, (0, -products % blocks))
    return wide.reshape(groups, n, blocks, -1).transpose(1, 2).reshape(groups * blocks, n, -1)


def from_blocks(rows: Tensor, products: int) -> Tensor:
    """The inverse of `in_blocks`."""
    blocks = blocks_of(products)
    return rows.reshape(-1, blocks, *rows.shape[1:]).transpose(1, 2).flatten(2)[..., :products]


class Sums:
    """Of the rows x of the rounded input, and the results y = W x of the float op on its own rows, before bias and bounds.

    `weight` (groups, channels, products), `bias` (groups, channels, 1): of the float op. A result is active where no bound cuts it.
    """

    def __init__(self, weight: Tensor, bias: Tensor, bounds: Bounds) -> None:
        self.weight, self.bias, self.bounds = weight, bias, bounds
        groups, channels, products = weight.shape
        block = in_blocks(weight)
        parts = 2 if max(groups * products**2, weight.numel()) <= HALVED else 1
        self._counts, self._batches = [0] * parts, 0
        self._h = torch.zeros(parts, len(block), block.shape[2], block.shape[2], dtype=torch.float64)
        self._c = torch.zeros(parts, *block.shape, dtype=torch.float64)
        self._active = torch.zeros(groups, channels, dtype=torch.float64)
        self._results = torch.zeros(groups, channels, dtype=torch.float64)
        self._rows = torch.zeros(groups, channels if bounds != (None, None) else 1, products, dtype=torch.float64)

    def add(self, sample: Sample) -> None:
        """Rows of one more batch."""
        rows, results = sample.rounded, sample.floats @ self.weight.mT
        blocks = in_blocks(rows)
        parts = results if len(blocks) == len(results) else in_blocks(sample.floats) @ in_blocks(self.weight).mT
        half = self._batches % len(self._counts)
        self._batches += 1
        self._counts[half] += rows.shape[1]
        _add(self._h[half], blocks.mT @ blocks)
        _add(self._c[half], parts.mT @ blocks)
        active = self._active_of(results)
        self._active += results.shape[1] if active is None else active.sum(1)
        self._results += (results if active is None else results * active).sum(1)
        self._rows += rows.sum(1, keepdim=True) if active is None else active.mT @ rows

    @property
    def count(self) -> int:
        """Of all rows."""
        return sum(self._counts)

    def own(self) -> tuple[list[int], list[Tensor]]:
        """All that `add` counted, in one value."""
        return self._counts, [self._h, self._c, self._active, self._results, self._rows]

    def join(self, said: Sequence[tuple[list[int], list[Tensor]]]) -> None:
        """What several processes counted, in place of what this one did."""
        if len(said) == 1:
            return
        self._counts = [sum(counts) for counts in zip(*(counts for counts, _ in said))]
        held = [torch.stack(parts).sum(0) for parts in zip(*(tensors for _, tensors in said))]
        self._h, self._c, self._active, self._results, self._rows = held

    def halves(self) -> tuple[Moments, Moments] | None:
        """Sums, no means, of every second batch and of the others; None where that is much, or one batch. To be asked before `moments`."""
        if len(self._counts) == 1 or not all(self._counts):
            return None
        one, other = (Moments(h, c) for h, c in zip(self._h, self._c))
        return one, other

    def moments(self) -> Moments:
        """Of the blocks of a row. To be asked for once: they take the place of the sums, since of a long row they are large."""
        n, (h, c) = max(self.count, 1), (sums[0] if len(sums) == 1 else sums.sum(0) for sums in (self._h, self._c))
        self._h = self._c = torch.empty(0)
        return Moments(h.div_(n), c.div_(n))

    def mean_error(self, weight: Tensor, least: int) -> Tensor:
        """(groups, channels): what the active results with this weight lack, on average; 0 where fewer than `least` are active."""
        error = self._results - (self._rows * weight).sum(-1)
        return torch.where(self._active >= least, error / self._active.clamp(min=1), 0.0)

    def _active_of(self, results: Tensor) -> Tensor | None:
        """1 where a result is active, else 0; None where all are."""
        low, high = self.bounds
        if low is None and high is None:
            return None
        results = results + self.bias.mT
        active = torch.ones_like(results, dtype=torch.bool)
        if low is not None:
            active &= results > low
        if high is not None:
            active &= results < high
        return active.to(results.dtype)


def _add(sums: Tensor, more: Tensor) -> None:
    """Adds float32 to float64, piece by piece: torch would make a float64 copy of all."""
    for part, own in zip(sums.view(-1).split(PIECE), more.reshape(-1).split(PIECE), strict=True):
        part += own
