"""The dtypes of torch by name, as files spell them."""

from __future__ import annotations

import torch

_ALL = {d for d in vars(torch).values() if isinstance(d, torch.dtype)}
DTYPE_NAMES = {d: str(d).removeprefix("torch.") for d in sorted(_ALL, key=str)}
DTYPES = {name: d for d, name in sorted(DTYPE_NAMES.items(), key=lambda item: item[1])}


def is_plain(dtype: torch.dtype) -> bool:
    """Whether a saved file holds tensors of it: numbers without a scale."""
    return not str(dtype).startswith(("torch.q", "torch.bits"))
