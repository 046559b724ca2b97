"""Nested values: tuples, lists, dicts and slices of anything, walked and rebuilt; and Ref, which names a value in one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ref:
    """The value of an input, or of an earlier step."""

    name: str


def walk(value: object) -> Iterator[object]:
    """Every leaf of a nested value."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from walk(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from walk(item)
    elif isinstance(value, slice):
        yield from walk((value.start, value.stop, value.step))
    else:
        yield value


def rewrite(value: object, change: Callable[[Any], object]) -> Any:
    """The same nested value with every leaf replaced; dict keys stay."""
    if isinstance(value, (tuple, list)):
        items = [rewrite(item, change) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, dict):
        return {key: rewrite(item, change) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(rewrite(value.start, change), rewrite(value.stop, change), rewrite(value.step, change))
    return change(value)
