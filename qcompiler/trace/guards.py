"""What a trace holds fixed (guards, checked in each call) and what it says about itself (remarks)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx
from torch.fx.node import has_side_effect

from qcompiler.errors import InputError, Where
from qcompiler.ops.trees import described_tree


@dataclass(frozen=True)
class TraceRemark:
    """One thing to know about a trace: a module that stayed a leaf, or a value that was made concrete."""

    kind: Literal["leaf", "guard", "training-branch", "data-branch", "argument-changed", "autocast", "state", "float-statement",
                  "python-random"]  # fmt: skip
    where: Where
    reason: str


def guard_int(value: int, expected: int, message: str) -> None:
    """Raise InputError unless an integer (a size) is what the trace saw. Can be scripted."""
    if value != expected:
        raise InputError(f"{message}: expected {expected}, got {value}")


def guard_bool(value: bool, expected: bool, message: str) -> None:
    """Raise InputError unless a condition is what the trace saw. Can be scripted."""
    if value != expected:
        raise InputError(f"{message}: expected {expected}, got {value}")


def guard_float(value: float, expected: float, message: str) -> None:
    """Raise InputError unless a number that was computed from sizes is what the trace saw. Can be scripted."""
    if value != expected:
        raise InputError(f"{message}: expected {expected}, got {value}")


def guard(value: object, expected: object, message: str) -> None:
    """Raise InputError unless an argument that is no tensor (a flag, a string, None) is what the trace saw."""
    if value is not expected and (type(value) is not type(expected) or value != expected):
        found = repr(value) if isinstance(value, (bool, int, float, str)) or value is None else type(value).__name__
        raise InputError(f"{message}: expected {expected!r}, got {found}")


def guard_str(value: str, expected: str, message: str) -> None:
    """Raise InputError unless a string argument is what the trace saw. Can be scripted."""
    if value != expected:
        raise InputError(f"{message}: expected {expected}, got {value}")


def guard_member(value: object, expected: str, message: str) -> None:
    """Raise InputError unless a member of an enumeration is the one that the trace saw."""
    found = f"{type(value).__name__}.{getattr(value, 'name', None)}"
    if found != expected:
        raise InputError(f"{message}: expected {expected}, got {found}")


def guard_length(value: Any, expected: int, message: str) -> None:
    """Raise InputError unless an argument is a list or tuple of as many items as the trace saw."""
    if not isinstance(value, (list, tuple)) or len(value) != expected:
        found = f"{len(value)} items" if isinstance(value, (list, tuple)) else type(value).__name__
        raise InputError(f"{message}: expected {expected} items, got {found}")


def guard_keys(value: Any, expected: list[object], message: str) -> None:
    """Raise InputError unless an argument is a dict with the keys that the trace saw, in their order, which values are read in."""
    if not isinstance(value, dict) or list(value) != expected:
        found = list(value) if isinstance(value, dict) else type(value).__name__
        raise InputError(f"{message}: expected the keys {expected}, in this order, got {found}")


def guard_tree(value: object, expected: str, message: str) -> None:
    """Raise InputError unless an object of a registered class is made as the one that the trace saw."""
    found = described_tree(value)
    if found != expected:
        raise InputError(f"{message}: expected {expected}, got {found}")


def guard_layout(value: torch.Tensor, expected: list[int], message: str) -> None:
    """Raise InputError unless a tensor lies in memory without gaps, its dimensions in this order from the outermost to the innermost.
    Those of size 1 must have the strides of that order, too: some kernels choose a layout by them. Can be scripted."""
    stride = 1
    for i in range(len(expected)):
        dim = expected[len(expected) - 1 - i]
        if value.stride(dim) != stride:
            raise InputError(f"{message}: expected a layout in the order {expected}, got strides {value.stride()}")
        stride *= max(1, value.size(dim))


GUARDS: tuple[Callable[..., None], ...] = (
    guard, guard_bool, guard_int, guard_float, guard_str, guard_member, guard_length, guard_keys, guard_tree,
    guard_layout,
)  # fmt: skip
for _function in GUARDS:
    has_side_effect(_function)


def guard_for(value: object) -> Callable[..., None]:
    """The guard function for a value of this type."""
    return {bool: guard_bool, int: guard_int, float: guard_float}.get(type(value), guard)


def is_guard(node: fx.Node) -> bool:
    """Whether a node is a guard: it has no result and must not be removed."""
    return node.op == "call_function" and node.target in GUARDS
