"""Where the ends of a range are the clamp, and where codes have to be cut."""

from __future__ import annotations

import torch

from qcompiler.ir.types import QParams
from qcompiler.stages.arguments import Bounds


def code_limits(p: QParams, bounds: Bounds) -> tuple[int, int] | None:
    """The lowest and highest code that a value may have; None where those are the ends of the dtype, at which rounding cuts anyway.

    A clamp to (low, high) before rounding is one of codes to those of low and high behind it, since rounding keeps the order.
    """
    assert isinstance(p.scale, float) and isinstance(p.zero_point, int)
    ends = torch.iinfo(p.dtype)
    low = max(p.quant_min, ends.min if bounds[0] is None else _code(bounds[0], p))
    high = min(p.quant_max, ends.max if bounds[1] is None else _code(bounds[1], p))
    return None if low <= ends.min and high >= ends.max else (low, max(low, high))


def _code(value: float, p: QParams) -> int:
    assert isinstance(p.scale, float) and isinstance(p.zero_point, int)
    return round(value / p.scale) + p.zero_point if abs(value) < 1e30 else (2**31 if value > 0 else -(2**31))
