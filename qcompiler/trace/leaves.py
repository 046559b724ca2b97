"""What stands in nests of containers and objects, by dotted name."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from qcompiler.trace.containers import content, refill
from qcompiler.trace.opaque import Opaque
from qcompiler.trace.slots import DEEPEST, is_object, joined


def nested(function: Callable[[str, Any], Any], value: Any, path: str, depth: int = 0) -> Any:
    """Apply a function to what stands in a nest of containers and objects, with its dotted name. A container in which nothing
    changes stays the same object, another is copied."""
    if depth > DEEPEST:
        return value
    if type(value) is Opaque:
        return function(path, value)
    if isinstance(value, (list, tuple, deque)) and type(value) is not torch.Size:
        held = value if isinstance(value, tuple) else content(value)
        items = [nested(function, item, joined(path, i), depth + 1) for i, item in enumerate(held)]
        if all(a is b for a, b in zip(items, held, strict=True)):
            return value
        if isinstance(value, deque):
            return type(value)(items, value.maxlen)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if not isinstance(value, dict) and not (is_object(value) and hasattr(value, "__dict__")):
        return function(path, value)
    fields: Any = content(value if isinstance(value, dict) else vars(value))
    made = {key: nested(function, item, joined(path, key), depth + 1) for key, item in fields.items()}
    if all(made[key] is item for key, item in fields.items()):
        return value
    copied = copy.copy(value)
    if isinstance(value, dict):
        refill(copied, made)
    attributes: dict[str, Any] = getattr(copied, "__dict__", {})  # a dict may have its items as attributes, too
    attributes.update({key: item for key, item in made.items() if not isinstance(value, dict) or attributes.get(key) is fields[key]})
    return copied


def leaves(value: object, path: str) -> dict[str, Any]:
    """What stands in a nest of containers and objects, by dotted name."""
    found: dict[str, Any] = {}

    def note(name: str, item: object) -> Any:
        found[name] = item
        return item

    nested(note, value, path)
    return found
