"""hardswish on the sums of a convolution or linear: a product of two 16-bit numbers, exact but for their rounding. See qc_epilogue in qc.h.

x * clamp(x + 3, 0, 6) / 6: both factors count the same units, so that 2^15 units^2 are 6 steps of the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qcompiler.backends.native.emit.layer_code import Call
from qcompiler.backends.native.plan.codes import Codes

MOST = 0.2  # steps of the result: a product that comes no closer is left to the pieces of curve.py
ONE = 2**15


@dataclass(frozen=True, eq=False)
class Knee:
    """x = v / unit + half, and of 0..knee what the first factor is. `error`: the largest distance to the function, in steps of the result,
    before it is rounded."""

    name: str
    unit: float
    half: int
    knee: int
    error: float

    @property
    def axis(self) -> tuple[float, float]:
        """What one step of the sums' float form is in real numbers, and where 0 lies, in steps."""
        return self.unit, float(self.half)

    def code(self, fields: Call, codes: Codes) -> None:
        fields.numbers(**{"e.knee": self.knee, "e.half": self.half})


def hardswish(v: Tensor) -> Tensor:
    return v * (v + 3).clamp(0, 6) / 6


def knee_of(codes: Codes) -> Knee | None:
    """The best of a few: whole numbers are near the sizes that fit, and a unit is exact for the straight part or for the bent one."""
    if not 1e-6 < codes.scale < 1e6:
        return None
    ideal, found = math.sqrt(6 * ONE / codes.scale), []
    for knee in range(math.floor(ideal) - 1, math.floor(ideal) + 3):
        for unit in (knee * codes.scale / ONE, 6 / max(knee, 1)):
            half = round(3 / unit)
            if 0 < knee < ONE and 0 < half < ONE:
                found.append(Knee("hardswish", unit, half, knee, _error(unit, half, knee, codes)))
    best = min(found, key=lambda one: one.error, default=None)
    return best if best is not None and best.error <= MOST else None


def _error(unit: float, half: int, knee: int, codes: Codes) -> float:
    """With what rounding x adds. Beyond the ends of x the function must have left the codes, or be 0."""
    x = torch.from_numpy(np.arange(-ONE, ONE, dtype=np.float64))
    y = (x.clamp(0, knee) * (x - half).clamp(min=-ONE) / ONE + codes.zero).clamp(codes.low, codes.high)
    apart = [(_steps((x - half + part) * unit, codes) - y).abs().max() for part in (-0.5, 0.0, 0.5)]
    beyond = (_steps(torch.tensor(math.inf), codes) - y[-1]).abs()
    return float(torch.stack([*apart, beyond]).max())


def _steps(v: Tensor, codes: Codes) -> Tensor:
    return (hardswish(v) / codes.scale + codes.zero).clamp(codes.low, codes.high)
