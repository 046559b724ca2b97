"""Rounding a weight so that its products keep their values: sequential rounding with error feedback, then coordinate descent.

Of an op y = W x + b with rows x of the rounded input, float results y less b, and H = E[x x^T]: the best real weight is
W0 = W + (C - W H)(H + d)^-1 with C = E[y x^T] and a damping d, and the error of any other one is that of W0 plus (w - w0) H (w - w0)^T.
Columns are rounded one by one, and what is lost is made up by those to come (Frantar et al., GPTQ, 2022; Optimal Brain Surgeon). Then
single codes move by steps as long as the error falls.

Means are not taken out: a bias could give them back, but weights that lean on it fit no data of other means (measured: worse than rounding
to the nearest).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Holds: TypeAlias = Callable[[Tensor], Tensor]  # of codes (groups, channels, products), whether a channel may have them: (groups, channels)
FEW = 64  # products up to which single codes are moved: it takes time as their square, and gains less the more there are
BLOCK = 32  # columns whose errors are handed on together


@dataclass(frozen=True)
class Grid:
    """What a weight may be: (codes - zero_point) * scale. Both (groups, channels, 1)."""

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int

    def repeated(self, times: int) -> Grid:
        """The same for so many groups in the place of each."""
        return Grid(self.scale.repeat_interleave(times, 0), self.zero_point.repeat_interleave(times, 0), self.low, self.high)

    def nearest(self, weight: Tensor) -> Tensor:
        """Codes, as floats."""
        return (torch.round(weight / self.scale) + self.zero_point).clamp(self.low, self.high)

    def real(self, codes: Tensor) -> Tensor:
        return (codes - self.zero_point).mul_(self.scale)


@dataclass(frozen=True)
class Moments:
    """Of rows and results: `h` (groups, products, products), `c` (groups, channels, products)."""

    h: Tensor
    c: Tensor

    def damped(self, damping: float) -> Tensor:
        """h with a part of its mean diagonal added. A product that is always zero gets a one: its code has no effect."""
        h = self.h.clone()
        _diagonal(h).add_(self.more(damping))
        return h

    def more(self, damping: float) -> Tensor:
        """(groups, products): what `damped` adds to the diagonal."""
        diagonal = _diagonal(self.h)
        more = damping * diagonal.mean(-1, keepdim=True) + (diagonal == 0) * 1.0
        return more.clamp(min=torch.finfo(torch.float32).tiny)

    def near(self, weight: Tensor, damping: float) -> Moments:
        """Those whose best weight is the damped one, W0: W0 (H + d) = C + W d."""
        h = self.damped(damping)
        more = _diagonal(h) - _diagonal(self.h)
        return Moments(h, self.c + weight * more[:, None, :])

    def error(self, weight: Tensor) -> Tensor:
        """(groups, channels): the squared error of the results with this real weight, less what no weight could mend."""
        return (weight @ self.h).sub_(self.c, alpha=2).mul_(weight).sum(-1)


def reconstructed(weight: Tensor, start: Tensor, moments: Moments, grid: Grid, damping: float, holds: Holds | None = None) -> Tensor:
    """Codes (groups, channels, products) whose products are nearest to the float results: never worse than `start` on these rows.

    weight: float64, same shape. `start`: codes that may be had, of any dtype. `holds`: what the kernel's sums allow.
    """
    found = sequential(weight, moments, grid, damping)
    if holds is not None:
        found = torch.where(holds(found)[..., None], found, start)
    codes = _better(found, start, moments, grid)
    if weight.shape[-1] > FEW:
        return codes
    near = moments.near(weight, damping)
    return _better(descended(codes, near.h, near.c, grid, holds), codes, moments, grid)


def _better(codes: Tensor, start: Tensor, moments: Moments, grid: Grid) -> Tensor:
    """By channel those with less error."""
    won = moments.error(grid.real(codes)) <= moments.error(grid.real(start))
    return torch.where(won[..., None], codes, start.to(codes.dtype))


def sequential(weight: Tensor, moments: Moments, grid: Grid, damping: float) -> Tensor:
    """Codes by rounding the best real weight column after column, those with the largest second moment first."""
    order = (_diagonal(moments.h) + moments.more(damping)).argsort(dim=-1, descending=True, stable=True)
    rows = order[:, None, :].expand_as(weight)
    upper = _inverse_root(moments, damping, order)
    missing = weight @ moments.h
    best = _solved(torch.sub(moments.c, missing, out=missing), rows, upper).add_(weight)
    left, root = best.gather(-1, rows).float(), upper.float()  # of a step, float32 holds enough
    del missing, best, upper
    single = Grid(grid.scale.float(), grid.zero_point.float(), grid.low, grid.high)
    codes = torch.empty_like(left)
    for first in range(0, left.shape[-1], BLOCK):
        _round_block(left, codes, root, single, first)
    return torch.empty_like(weight).scatter_(-1, rows, codes.double())


def _inverse_root(moments: Moments, damping: float, order: Tensor) -> Tensor:
    """The upper triangular u with u^T u = h^-1 of the damped h, its products in this order: with h = r r^T, r upper triangular, it is r^-1.

    Beside `moments.h`, two matrices of its size are in memory at most.
    """
    back, group = order.flip(-1), torch.arange(len(order))[:, None, None]
    h = moments.h[group, back[:, :, None], back[:, None, :]]
    _diagonal(h).add_(moments.more(damping).gather(-1, back))
    root = torch.linalg.cholesky(h)
    del h
    root = root.flip(-1, -2)
    unit = torch.zeros_like(root)  # by columns, as LAPACK gives and takes them: solved in place
    _diagonal(unit).fill_(1)
    return torch.linalg.solve_triangular(root, unit, upper=True, out=unit)  # type: ignore[no-any-return]


def _diagonal(h: Tensor) -> Tensor:
    """(groups, products), in the same memory."""
    return h.diagonal(dim1=-2, dim2=-1)


def _solved(right: Tensor, rows: Tensor, upper: Tensor) -> Tensor:
    """right h^-1, in its place, where `upper` is the root of h^-1 with its columns in the order of `rows`."""
    found = torch.gather(right, -1, rows) @ upper.mT
    found = found @ upper
    return right.scatter_(-1, rows, found)


def _round_block(weight: Tensor, codes: Tensor, upper: Tensor, grid: Grid, first: int) -> None:
    last = min(first + BLOCK, weight.shape[-1])
    lost = torch.empty_like(weight[..., first:last])
    for column in range(first, last):
        own = weight[..., column : column + 1]
        rounded = grid.nearest(own)
        codes[..., column : column + 1] = rounded
        share = (own - grid.real(rounded)) / upper[:, column, column, None, None]
        lost[..., column - first : column - first + 1] = share
        weight[..., column + 1 : last] -= share * upper[:, column, None, column + 1 : last]
    weight[..., last:] -= lost @ upper[:, first:last, last:]


def descended(codes: Tensor, h: Tensor, c: Tensor, grid: Grid, holds: Holds | None = None, sweeps: int = 4) -> Tensor:
    """Moves one code of each channel at a time to where the error is least, until none moves. Codes that `holds` refuses are not taken."""
    codes, real = codes.clone(), grid.real(codes)
    slope = real @ h - c  # half the gradient
    for _ in range(sweeps):
        moved = False
        for column in range(codes.shape[-1]):
            curve = h[:, column, column, None].clamp(min=torch.finfo(torch.float64).tiny)
            step = torch.round(-slope[..., column] / (curve * grid.scale[..., 0]))
            new = (codes[..., column] + step).clamp(grid.low, grid.high)
            new = _allowed(codes, column, new, holds)
            change = new - codes[..., column]
            if bool(change.any()):
                moved = True
                codes[..., column] = new
                slope += (change * grid.scale[..., 0])[..., None] * h[:, None, column, :]
        if not moved:
            break
    return codes


def _allowed(codes: Tensor, column: int, new: Tensor, holds: Holds | None) -> Tensor:
    """The code of a column where the kernel's sums allow it, else the old one."""
    old = codes[..., column]
    if holds is None or not bool((new != old).any()):
        return new
    tried = codes.clone()
    tried[..., column] = new
    return torch.where(holds(tried), new, old)
