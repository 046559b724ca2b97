"""Objects of registered classes (torch.utils._pytree: caches and results of libraries) taken apart and put together again."""

from __future__ import annotations

from typing import Any

import torch.utils._pytree as pytree

OWN = (list, tuple, dict)  # containers that Python itself takes apart


def node_of(kind: type) -> Any:
    """How torch takes objects of this class apart; None for a class that nobody registered, and for plain containers."""
    return None if kind in OWN else pytree.SUPPORTED_NODES.get(kind)


def is_tree(value: object) -> bool:
    return node_of(type(value)) is not None


def children(value: object) -> list[object]:
    """What an object of a registered class holds, in the order of its class. Raises TypeError for other objects."""
    node = node_of(type(value))
    if node is None:
        raise TypeError(f"{type(value).__name__} is not registered with torch.utils._pytree.register_pytree_node")
    return list(node.flatten_fn(value)[0])


def context(value: object) -> Any:
    """What an object of a registered class is besides its children."""
    return node_of(type(value)).flatten_fn(value)[1]


class PutTogether:
    """Makes an object of one registered class from its children and what else it is. `of` gives the one of a class."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.__name__ = self.__qualname__ = f"make_{kind.__name__}"
        self.__module__ = kind.__module__

    def __call__(self, parts: Any, held: Any) -> Any:
        return node_of(self.kind).unflatten_fn(list(parts), held)

    def __reduce__(self) -> tuple[Any, ...]:
        return put_together, (self.kind,)


_MAKERS: dict[type, PutTogether] = {}


def put_together(kind: type) -> PutTogether:
    """What makes objects of a registered class: one for each class."""
    return _MAKERS.setdefault(kind, PutTogether(kind))


def described_tree(value: object) -> str:
    """An object of a registered class without its children, as text: `DynamicCache(['key_cache', 'value_cache'], 2)`."""
    if not is_tree(value):
        return type(value).__name__
    return f"{type(value).__name__}({context(value)!r}, {len(children(value))})"
