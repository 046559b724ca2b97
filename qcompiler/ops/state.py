"""State that a forward keeps between its calls: read at the start of a graph, written at its end, held in buffers.

A state is held by one tensor that stays the same object for a module's life and is pointed at other memory by each write
(`set_`), so no write touches memory that a caller or an earlier result has, and a state may change its shape. A state that
nothing was written to yet, where the model had none, has shape (0,). Numbers are held as tensors without dimensions.
Each function can be scripted and stands in exported sources.
"""

from __future__ import annotations

import torch
from torch import Tensor


def read_state(held: Tensor) -> Tensor:
    """The value of a state: an alias that no later write changes."""
    return held.data


def read_state_or(held: Tensor, initial: Tensor) -> Tensor:
    """The value of a state; `initial` before the first write."""
    return initial if held.dim() == 1 and held.size(0) == 0 else held.data


def read_int(held: Tensor) -> int:
    """The value of a state that is an integer."""
    return int(held.item())


def read_float(held: Tensor) -> float:
    """The value of a state that is a number."""
    return float(held.item())


def read_bool(held: Tensor) -> bool:
    """The value of a state that is a truth value."""
    return bool(held.item())


def write_state(held: Tensor, value: Tensor) -> None:
    """Let a state hold a tensor of its dtype, and of any shape, from the next call on."""
    held.set_(value.detach())  # type: ignore[call-overload]


def write_int(held: Tensor, value: int) -> None:
    """Let a state hold an integer."""
    held.set_(torch.tensor(value, dtype=held.dtype))  # type: ignore[call-overload]


def write_float(held: Tensor, value: float) -> None:
    """Let a state hold a number."""
    held.set_(torch.tensor(value, dtype=held.dtype))  # type: ignore[call-overload]


def write_bool(held: Tensor, value: bool) -> None:
    """Let a state hold a truth value."""
    held.set_(torch.tensor(value, dtype=held.dtype))  # type: ignore[call-overload]
