"""What the containers and objects in reach of a function hold, to see what one way of a condition on data changes, and to undo it."""

from __future__ import annotations

from collections.abc import Iterable
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

import torch

from qcompiler.trace.containers import CONTAINERS, Content, content, refill, same
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


class Untouched:
    """The contents of whatever can be reached from some values: lists, sets, dicts, deques and the attributes of objects and modules."""

    def __init__(self, roots: Iterable[object]) -> None:
        self._before: list[tuple[object, Content]] = []
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
        return any(not same(held, _contents(value)) for value, held in self._before)

    def put_back(self) -> None:
        """Gives everything the contents that it had."""
        for value, held in self._before:
            refill(value if isinstance(value, CONTAINERS) else vars(value), held)


def _contents(value: object) -> Content | None:
    """A copy of what a value holds, in order; None where it holds nothing that can change."""
    if isinstance(value, CONTAINERS):
        return content(value)
    return content(vars(value)) if hasattr(value, "__dict__") else None
