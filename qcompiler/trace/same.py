"""Whether what a forward keeps is the same after another call."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
import torch

from qcompiler.trace.slots import leaves

UNKNOWN = (str, bytes, Enum, np.ndarray, np.generic)  # what can be compared and is no value of a graph


def kind_of(value: object) -> object:
    """What of a value must be the same before the first call: the dtype of a tensor, the type of anything but numbers."""
    if isinstance(value, torch.Tensor):
        return value.dtype
    return float if type(value) in (int, float) else type(value)


def as_later(value: object, later: object) -> object:
    """A number in the type that it has at later calls."""
    return float(value) if type(value) is int and type(later) is float else value


def held_tensor(value: object, example: torch.Tensor) -> torch.Tensor:
    return value.detach().clone() if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=example.dtype)


def alike(a: Any, b: Any) -> bool:
    """Whether two values are tensors of the same shape and dtype."""
    tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
    return tensors and a.shape == b.shape and a.dtype == b.dtype


def equal(a: object, b: object) -> bool:
    """Whether two nests hold equal tensors and numbers in the same places. Objects of other kinds count as equal."""
    left, right = leaves(a, ""), leaves(b, "")
    return list(left) == list(right) and all(same_leaf(x, right[path]) for path, x in left.items())


def same_leaf(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return alike(a, b) and bool(torch.equal(a, b) or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))
    if isinstance(a, (bool, int, float, str, type(None))) or isinstance(b, (bool, int, float, str, type(None))):
        return type(a) is type(b) and (a == b or a != a)
    if isinstance(a, UNKNOWN):
        arrays = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
        return type(a) is type(b) and bool(np.array_equal(a, b) if arrays else a == b)  # type: ignore[arg-type]
    return type(a) is type(b)
