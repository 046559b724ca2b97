"""Arguments and results of the user's calls are nests of containers, of the user's own kinds too: one walk for all of them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from qcompiler.trace.proxy import Proxy, Sizes


def map_nested(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to what stands in tuples, lists, dicts, slices and dataclass instances."""
    kind = type(value)
    if kind is tuple or kind is Sizes:
        return tuple(map_nested(function, item) for item in tuple.__iter__(value))
    if kind is list:
        return [map_nested(function, item) for item in value]
    if kind is dict:
        return {key: map_nested(function, item) for key, item in value.items()}
    if kind is slice:
        return slice(*(map_nested(function, item) for item in (value.start, value.stop, value.step)))
    if isinstance(value, tuple) and kind is not Proxy and kind is not torch.Size:
        items = [map_nested(function, item) for item in value]
        return kind(*items) if hasattr(kind, "_fields") else kind(items)
    if issubclass(kind, dict):
        changed = copy.copy(value)
        for key, item in value.items():
            changed[key] = map_nested(function, item)
        return changed
    if dataclasses.is_dataclass(kind):
        changed = copy.copy(value)
        for field in dataclasses.fields(kind):
            object.__setattr__(changed, field.name, map_nested(function, getattr(value, field.name)))
        return changed
    return function(value)


def any_nested(holds: Callable[[Any], bool], value: Any) -> bool:
    """Whether anything that stands in a nest of containers is such."""
    found = False

    def look(item: Any) -> Any:
        nonlocal found
        found = found or holds(item)

    map_nested(look, value)
    return found


def has_tensor(value: object) -> bool:
    """Whether a tensor, a traced one too, stands in a nest of containers."""
    return any_nested(lambda item: isinstance(item, torch.Tensor), value)
