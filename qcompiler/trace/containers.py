"""What containers hold, read and put back by the methods of Python's own classes.

A class of the user's that derives from dict or list may do anything in the methods that it overrides: make a new object at each read of
an item, as the tables of activations in model libraries do, or count its readers.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Any

Content = dict[Any, object] | list[object]

_BASES: tuple[Any, ...] = (OrderedDict, dict, list, deque, set)
CONTAINERS = (dict, list, deque, set)


def _base(container: object) -> Any:
    return next(base for base in _BASES if isinstance(container, base))


def content(container: object) -> Content:
    """A copy of what a container holds: a plain dict, else a list, in its order."""
    base = _base(container)
    keys = list(base.__iter__(container))
    return {key: dict.__getitem__(container, key) for key in keys} if isinstance(container, dict) else keys


def length(container: object) -> int:
    """How many things a container holds."""
    return int(_base(container).__len__(container))


def item(container: object, key: object) -> object:
    """What stands at a key of a dict or at a place of a list; KeyError, IndexError where nothing does."""
    return _base(container).__getitem__(container, key)


def refill(container: Any, before: Content) -> None:
    """Makes a container hold what it held."""
    if same(content(container), before):
        return
    base = _base(container)
    base.clear(container)
    if isinstance(before, dict):
        for key, value in before.items():
            base.__setitem__(container, key, value)
    else:
        (base.update if base is set else base.extend)(container, before)


def same(a: object, b: object) -> bool:
    """Whether two contents are the same objects in the same order (proxies must not be compared by value)."""
    if isinstance(a, dict) and isinstance(b, dict):
        return len(a) == len(b) and all(k is m and v is w for (k, v), (m, w) in zip(a.items(), b.items(), strict=True))
    if not isinstance(a, Iterable) or not isinstance(b, Iterable):
        return a is b
    first, second = list(a), list(b)
    return len(first) == len(second) and all(v is w for v, w in zip(first, second, strict=True))
