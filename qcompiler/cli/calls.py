"""Calls of models on what a file holds, and the tensors of their results."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def call(module: nn.Module, value: object) -> Any:
    """A dict holds keywords, a tuple or list positional arguments, anything else is the one argument."""
    if isinstance(value, dict):
        return module(**value)
    return module(*value) if isinstance(value, tuple | list) else module(value)


def tensors(value: object, path: str = "") -> list[tuple[str, torch.Tensor]]:
    """(path, tensor) of all tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        return [(path, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple | list) else ()
    return [found for key, inner in items for found in tensors(inner, f"{path}.{key}" if path else str(key))]
