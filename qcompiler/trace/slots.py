"""Places where a forward can keep something from one call to the next, and nests of what stands there (`find_slots` finds them).

A holder is what has such places: a module's attributes and buffers, a list or dict that one of them holds, the attributes of
an object that is no module, of a class or of a function, and the globals and closures that methods name.
"""

from __future__ import annotations

import copy
import sys
import types
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import torch
from torch import nn

from qcompiler.trace.containers import content, item, length, refill
from qcompiler.trace.opaque import Opaque

INTERNAL = frozenset(nn.Module().__dict__)
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_LIBRARIES = frozenset(sys.stdlib_module_names) | {"torch", "numpy", "qcompiler"}  # whose objects are no helpers of a model
DEEPEST = 8  # levels of nesting
MISSING: Any = type("Missing", (), {"__repr__": lambda self: "nothing"})()


@dataclass(frozen=True)
class Holder:
    """One dict, list, set, object with slots, class or closure cell. `path`: the dotted name of what has it."""

    path: str
    owner: str  # path of the module that leads to it
    value: Any
    kind: Literal["dict", "list", "set", "class", "object", "cell"]
    of: Any = None  # the module or object whose attributes a dict is

    def places(self) -> list[Any]:
        """The keys of what it has, in order."""
        if self.kind == "list":
            return list(range(length(self.value)))
        if self.kind == "dict":
            return [key for key in content(self.value) if not (isinstance(self.of, nn.Module) and key in INTERNAL)]
        if self.kind == "set":
            return []
        return ["value"] if self.kind == "cell" else data_fields(self.value)

    def get(self, key: Any) -> Any:
        if self.kind == "list":
            return item(self.value, key) if key < length(self.value) else MISSING
        if self.kind == "dict":
            return dict.get(self.value, key, MISSING)
        if self.kind == "class":
            return vars(self.value).get(key, MISSING)
        return getattr(self.value, "cell_contents" if self.kind == "cell" else key, MISSING)

    def set(self, key: Any, value: Any) -> None:
        if value is MISSING:
            self._drop(key)
        elif self.kind == "dict":
            dict.__setitem__(self.value, key, value)
        elif self.kind == "list":
            self.value.append(value) if key >= len(self.value) else self.value.__setitem__(key, value)
        elif self.kind == "cell":
            self.value.cell_contents = value
        else:
            (type if self.kind == "class" else object).__setattr__(self.value, key, value)

    def _drop(self, key: Any) -> None:
        if self.kind == "cell":
            getattr(self.value, "unset", int)()
        elif self.kind == "dict":
            dict.pop(self.value, key, None)
        elif self.kind == "list" and key < length(self.value):
            self.value.pop()
        elif self.kind in ("class", "object") and self.get(key) is not MISSING:
            (type if self.kind == "class" else object).__delattr__(self.value, key)

    def default(self, key: Any) -> Any:
        """What a read of a missing attribute finds in the class."""
        return next((vars(kind)[key] for kind in type(self.of).__mro__ if key in vars(kind)), MISSING) if self.of is not None else MISSING

    def name(self, key: Any) -> str:
        """The dotted name of what stands under a key."""
        return self.path if self.kind == "cell" else joined(self.path, key)


def joined(path: str, key: object) -> str:
    """The dotted name of what stands under a key: one part more, which is no name of nn.Module's own."""
    part = str(key).replace(".", "_")
    part = f"{part}_" if not part or hasattr(nn.Module, part) or part in INTERNAL else part
    return f"{path}.{part}".lstrip(".")


def is_object(value: object) -> bool:
    """Whether a value is an instance of a class of the user's that is no module, function, class or member of an enum."""
    if isinstance(value, types.SimpleNamespace):
        return True
    kind = type(value)
    if isinstance(value, (nn.Module, torch.Tensor, type, types.ModuleType, types.FunctionType, types.MethodType, Enum, *PLAIN)):
        return False
    return bool(kind.__flags__ & (1 << 9)) and is_users(kind)  # 1 << 9: made by a class statement


def data_fields(value: object) -> list[str]:
    if isinstance(value, type):
        return [name for name, item in vars(value).items() if not name.startswith("__") and is_data(item)]
    kinds = type(value).__mro__
    return [name for kind in kinds for name in _names_of(kind.__dict__.get("__slots__", ())) if hasattr(value, name)]


def _names_of(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def is_data(value: object) -> bool:
    return isinstance(value, (type(None), bool, int, float, torch.Tensor, list, dict, tuple)) or is_object(value)


def is_users(kind: type | types.FunctionType) -> bool:
    """Whether a class, or a function, is neither of Python, nor of torch or numpy, nor of this package."""
    return is_users_name(kind.__module__ or "")


def is_users_name(module: str) -> bool:
    return module.partition(".")[0] not in _LIBRARIES


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
