"""Functions of one variable that the epilogue of a convolution or linear computes on its sums, as 32 parabolas of 16-bit numbers.

Between the ends of the pieces lies every value that the result's codes tell apart; beyond them the code stays what it is at the end.
Pieces are equally wide; where a function has an edge, two of them meet. See qc_epilogue in qc.h.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcompiler.backends.native.emit.layer_code import Call
from qcompiler.backends.native.plan.codes import Codes

EDGES = {"hardswish": 3.0, "elu": 0.0}  # such a value, and its negative
CURVES = ("elu", "gelu", "hardswish", "mish", "sigmoid", "silu", "softplus", "tanh")
PIECES, STEPS = 32, 2048  # steps of x in a piece
PARTS = 64  # of a step of the result, which y counts
HALF = (PARTS - 1) / 2  # of a step: y is rounded down, and what half a part more would add in the mean all codes of a layer have in common
ROOM = 1000.0  # codes beyond the last ones up to which a function is followed
FAR = 1e30
NEAR = (0.03, 0.1)  # steps of the result: values whose result is closer to the end's may lie beyond it
MOST = 0.75  # steps of the result: a function that no pieces come as close to is computed in float
NODES = (-math.sqrt(0.75), 0.0, math.sqrt(0.75))  # where a parabola through the function has nearly the least error

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Curve:
    """x = v / unit + start. `pieces`: int16, three numbers for each piece, as the kernels read them. `error`: the largest distance to the
    function, in steps of the result, before it is rounded."""

    name: str
    unit: float
    start: float
    pieces: NDArray[np.int16]
    error: float

    @property
    def axis(self) -> tuple[float, float]:
        """What one step of the sums' float form is in real numbers, and where 0 lies, in steps."""
        return self.unit, self.start

    def code(self, fields: Call, codes: Codes) -> None:
        fields.data("e.curve", with_halves(self.pieces))


def with_halves(pieces: NDArray[np.int16]) -> NDArray[np.int16]:
    """The numbers, and behind them the same in bytes: the low ones of the first of each piece, the high ones, then those of the others."""
    halves = pieces.astype("<i2").view(np.uint8).reshape(3, PIECES, 2).transpose(0, 2, 1)
    return np.concatenate([pieces.astype("<i2"), np.ascontiguousarray(halves).reshape(-1).view("<i2")])


def curve_of(name: str, function: Function, codes: Codes) -> Curve | None:
    """The best of a few; None where its pieces are further than MOST from the function. `function`: of float64 values."""
    steps, edge = _in_steps(function, codes, 0.0), EDGES.get(name)
    spans = [span for near in NEAR for span in _spans(*_ends(steps, near), edge)]
    whole = _in_steps(function, codes, ROOM)
    found = [_fitted(name, whole, steps, *span) for span in spans]
    best = min(found, key=lambda curve: curve.error)
    return best if best.error <= MOST else None


def _spans(low: float, high: float, edge: float | None) -> list[tuple[float, float]]:
    """Where the first piece may begin, and how wide pieces are, so that they reach from `low` to `high`."""
    spans = [(low, (high - low) / PIECES)]
    wide = (high - low) / (PIECES - 1)
    if edge is not None and (edge == 0 or edge >= wide):
        wide = edge / math.floor(edge / wide) if edge else wide
        spans.append((math.floor(low / wide) * wide, wide))
    return spans


def _fitted(name: str, whole: Function, steps: Function, low: float, wide: float) -> Curve:
    pieces, unit = _pieces(whole, low, wide), wide / STEPS
    start = -low / unit - PIECES * STEPS / 2
    return Curve(name, unit, start, pieces, _error(steps, pieces, unit, start))


def _in_steps(function: Function, codes: Codes, room: float) -> Function:
    """The function as a code that is not rounded yet, cut `room` codes beyond the last ones."""

    def steps(v: Tensor) -> Tensor:
        return (function(v) / codes.scale + codes.zero).clamp(codes.low - room, codes.high + room)

    return steps


def _ends(steps: Function, near: float) -> tuple[float, float]:
    """Between which values the code changes."""
    grid = torch.sinh(torch.linspace(-14, 14, 4001, dtype=torch.float64))
    at = steps(grid)
    left, right = (torch.nonzero((at - at[end]).abs() > near).reshape(-1) for end in (0, -1))
    if not len(left) or not len(right):
        return -1.0, 1.0
    return float(grid[left[0] - 1]), float(grid[right[-1] + 1])


def _pieces(steps: Function, low: float, wide: float) -> NDArray[np.int16]:
    """Parabolas of t from -1 to 1: value in the middle, slope, and half the bend, in the order of the upper five bits of x."""
    middle = low + (torch.arange(PIECES, dtype=torch.float64) + 0.5) * wide
    left, base, right = ((steps(middle + node * wide / 2) - 128) * PARTS + HALF for node in NODES)
    slope, bend = (right - left) / (2 * NODES[2]), (right + left - 2 * base) / (2 * NODES[2] ** 2)
    bend = bend.round().clamp(-16383, 16383)
    slope = slope.round().clamp(bend.abs() - 32767, 32767 - bend.abs())
    found = torch.stack([base.round().clamp(-32768, 32767), slope, bend]).roll(PIECES // 2, 1)
    return found.to(torch.int16).numpy().reshape(-1)


def codes_of(pieces: NDArray[np.int16], x: NDArray[np.int64]) -> NDArray[np.int64]:
    """y of each x, in PARTS of a step: what the kernels compute before they round."""
    piece, t = (x & 0xFFFF) >> 11, ((x << 5 ^ 0x8000) & 0xFFFF ^ 0x8000) - 0x8000
    base, slope, bend = pieces.astype(np.int64).reshape(3, PIECES)[:, piece]
    slope = slope + ((bend * t + 16384) >> 15)
    y: NDArray[np.int64] = np.clip(base + ((slope * t + 16384) >> 15), -32768, 32767)
    return y


def _error(steps: Function, pieces: NDArray[np.int16], unit: float, start: float) -> float:
    """The largest distance, beyond the ends too, with what rounding v and y to their steps adds. 33 places of a piece are looked at."""
    x = np.append(np.arange(-32768, 32768, STEPS // 32, dtype=np.int64), np.arange(STEPS - 32769, 32768, STEPS))
    x.sort()
    y = torch.from_numpy(codes_of(pieces, x)).double()
    found, low, high = (y - HALF) / PARTS + 128, *steps(torch.tensor([-FAR, FAR], dtype=torch.float64))
    v = (torch.from_numpy(x).double() - start) * unit
    between = torch.stack([steps(v + part * unit) for part in (-0.5, 0.0, 0.5)])
    cut = found.clamp(float(between.min()), float(between.max()))
    beyond = torch.stack([(cut[0] - low).abs(), (cut[-1] - high).abs()])
    return float(torch.cat([(between - cut).abs().reshape(-1), beyond]).max()) + 1 / PARTS
