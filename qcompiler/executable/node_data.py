"""How nodes are held as plain data, for drawings: without empty fields, in few characters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LIMIT = 200  # characters of constant arguments; the IR text has them all


def compact(data: Mapping[str, object]) -> dict[str, object]:
    """Without the fields that say nothing; a shape of no dimensions says something."""
    return {k: v for k, v in data.items() if v is not None and (v not in ("", {}) and (v != [] or k == "shape"))}


def rounded(value: object) -> Any:
    """Floats to 6 significant digits, so that documents are small and the same everywhere; inf and nan become None."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    return value


def clipped(text: str) -> str:
    """The text, cut to LIMIT characters."""
    return text if len(text) <= LIMIT else f"{text[:LIMIT]}…"
