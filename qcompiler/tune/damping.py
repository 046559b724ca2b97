"""How far a weight goes to where drawn rows ask it to go: as far as one half of the batches is right about the other half.

A layer in front has many rows that are alike in all data, and gains by going far. One behind has few places of few images: what it
lacks there is lacking in these images alone. No one damping is right for both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.tune.rounding import Moments

# How near a weight stays to what it was where halves of the data do not say it, in parts of the mean square of its inputs. With 0.01, as is
# usual for language models, the later layers of EfficientNet-Lite0 fit four calibration photos, and do worse on others than rounding to the
# nearest (20.97 dB against 22.05 at one layer, given the same inputs; 22.13 with 1).
DAMPING = 1.0
TRIED = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # times the usual damping
PIECE = 2**18  # numbers of matrices that are looked at at once


def usual_damping(products: int, rows: int, for_each: int) -> float:
    """Where there are fewer than `for_each` rows for each product, a weight stays nearer to what it was: EfficientNet-Lite0's layers on
    7 x 7 pixels have three for each, and fitted these alone (28 dB on them, 18 dB on other photos)."""
    return DAMPING * max(1.0, for_each * products / max(rows, 1)) ** 2


def chosen_damping(weight: Tensor, halves: tuple[Moments, Moments], usual: float) -> float | None:
    """The damping whose best real weight of each half has the least error on the other one; None where the weight as it was has less.

    It is less than `usual` only where there are many rows: halves of few agree by chance.
    """
    parts = [part for part in TRIED if part >= 1 or usual == DAMPING]
    errors = torch.zeros(len(parts), dtype=torch.float64)
    step = max(1, PIECE // weight.shape[-1] ** 2)
    for at in range(0, len(weight), step):
        part = slice(at, at + step)
        one, other = (Moments(half.h[part], half.c[part] - weight[part] @ half.h[part]) for half in halves)
        errors += sum(_errors(*pair, [usual * part for part in parts]) for pair in ((one, other), (other, one)))
    best = int(errors.argmin())
    return usual * parts[best] if errors[best] < 0 else None


def moved(weight: Tensor, moments: Moments, damping: float) -> Tensor:
    """The best real weight: weight + (c - weight h)(h + d)^-1."""
    root = torch.linalg.cholesky(moments.damped(damping))
    return weight + torch.cholesky_solve((moments.c - weight @ moments.h).mT, root).mT


def _errors(fitted: Moments, other: Moments, dampings: Sequence[float]) -> Tensor:
    """Of the best moves of a weight by some rows on other rows, for each damping. `c`: what the results of the weight as it was lack.

    A move is c (h + d)^-1. In the directions of h that is a division, and all channels are one matrix.
    """
    values, directions = torch.linalg.eigh(fitted.h)
    lack = fitted.c @ directions
    squares = (lack.mT @ lack).mul_(directions.mT @ other.h @ directions)
    gains = (other.c @ directions).mul_(lack).sum(1)
    mean = values.clamp_(min=0).mean(-1, keepdim=True)
    found = [(values + damping * mean).clamp_(min=torch.finfo(torch.float32).tiny).reciprocal_() for damping in dampings]
    return torch.stack([(x * ((squares @ x[..., None])[..., 0] - 2 * gains)).sum() for x in found])
