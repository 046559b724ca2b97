"""What the containers and objects in reach of a function hold, to see what one way of a condition on data changes, and to undo it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

from qcompiler.trace.proxy import Proxy

_ATOMS = (
    Proxy,
    torch.Tensor,
    str,
    bytes,
    int,
    float,
    complex,
    type,
    FunctionType,
    BuiltinFunctionType,
    MethodType,
    ModuleType,
    torch.dtype,
)
_PLAIN = (list, set, dict, deque)


class Untouched:
    """The contents of whatever can be reached from some values: lists, sets, dicts, deques and the attributes of objects and modules."""

    def __init__(self, roots: Iterable[object]) -> None:
        self._before: list[tuple[object, object]] = []
        seen: set[int] = set()
        stack = list(roots)
        while stack:
            value = stack.pop()
            if value is None or isinstance(value, _ATOMS) or id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, tuple):
                stack.extend(value)
            elif (held := _contents(value)) is not None:
                self._before.append((value, held))
                stack.extend([*held.values(), *held] if isinstance(held, dict) else held)

    def changed(self) -> bool:
        """Whether anything has other contents now."""
        return any(not _same(held, _contents(value)) for value, held in self._before)

    def put_back(self) -> None:
        """Gives everything the contents that it had."""
        for value, held in self._before:
            if _same(held, _contents(value)):
                continue
            target: Any = value if isinstance(value, _PLAIN) else vars(value)
            target.clear()
            fill: Any = target.extend if isinstance(target, (list, deque)) else target.update
            fill(held)


def _contents(value: object) -> list[object] | dict[Any, object] | None:
    """A copy of what a value holds, in order; None where it holds nothing that can change."""
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, (list, set, deque)):
        return list(value)
    return dict(vars(value)) if hasattr(value, "__dict__") else None


def _same(before: object, after: object) -> bool:
    if isinstance(before, dict) and isinstance(after, dict):
        return list(before) == list(after) and all(before[key] is after[key] for key in before)
    assert isinstance(before, list) and isinstance(after, list)
    return len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True))
