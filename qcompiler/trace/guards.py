"""What a trace holds fixed (guards, checked in each call) and what it says about itself (remarks)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import fx
from torch.fx.node import has_side_effect

from qcompiler.errors import InputError, Where


@dataclass(frozen=True)
class TraceRemark:
    """One thing to know about a trace: a module that stayed a leaf, or a value that was made concrete."""

    kind: Literal["leaf", "guard", "training-branch", "state"]
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


def guard(value: Any, expected: Any, message: str) -> None:
    """Raise InputError unless an argument that is no tensor (a flag, a string, None) is what the trace saw."""
    if value is not expected and (type(value) is not type(expected) or value != expected):
        raise InputError(f"{message}: expected {expected!r}, got {value!r}")


GUARDS: tuple[Callable[..., None], ...] = (guard, guard_bool, guard_int, guard_float)
for _function in GUARDS:
    has_side_effect(_function)


def guard_for(value: object) -> Callable[..., None]:
    """The guard function for a value of this type."""
    return {bool: guard_bool, int: guard_int, float: guard_float}.get(type(value), guard)


def is_guard(node: fx.Node) -> bool:
    """Whether a node is a guard: it has no result and must not be removed."""
    return node.op == "call_function" and node.target in GUARDS
