"""Which scales and zero points a quantized tensor can have: what is loaded, unpickled or read from a file is checked here.

A scale is a finite number above 0, in float32 too, which kernels compute with. A zero point is one of the codes of its dtype; one
that is no integer (of a table's row) is finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompiler.errors import ConfigError, Where

CODES = {torch.uint8: (0, 255), torch.quint8: (0, 255), torch.int8: (-128, 127), torch.qint8: (-128, 127)}
HINT = "is it of the same model, saved by this package and not changed since?"


def scale_fault(scale: Tensor) -> str:
    """What is wrong with scales, of any shape; empty where nothing is."""
    if not scale.is_floating_point():
        return f"scales are floats, not {scale.dtype}"
    wrong = ~((scale > 0) & torch.isfinite(scale) & (scale.float() > 0) & torch.isfinite(scale.float()))
    return f"no quantized tensor has a scale of {scale[wrong].reshape(-1)[0].item()}" if bool(wrong.any()) else ""


def zero_point_fault(zero_point: Tensor, dtype: torch.dtype) -> str:
    """What is wrong with zero points among codes of `dtype` (uint8 or int8, quint8 or qint8); empty where nothing is."""
    if zero_point.is_floating_point():
        return "" if bool(torch.isfinite(zero_point).all()) else "a zero point is no number"
    low, high = CODES[dtype]
    wrong = (zero_point < low) | (zero_point > high)
    return f"{dtype} has no zero point {zero_point[wrong].reshape(-1)[0].item()}: {low} to {high}" if bool(wrong.any()) else ""


def check_qparams(name: str, scale: Tensor, zero_point: Tensor, dtype: torch.dtype, where: Where | None = None) -> None:
    """Raises ConfigError naming `name` where no tensor of `dtype` has these qparams, or they differ in shape."""
    text = scale_fault(scale) or zero_point_fault(zero_point, dtype)
    if not text and scale.shape != zero_point.shape:
        text = f"{tuple(scale.shape)} scales do not go with {tuple(zero_point.shape)} zero points"
    if text:
        raise ConfigError(f"{name}: {text}", code="qparams", where=where, hint=HINT)
