"""Places where a forward can keep something from one call to the next, found by a walk from a model's modules.

A holder is what has such places: a module's attributes and buffers, a list or dict that one of them holds, the attributes of
an object that is no module, the class of a module, and the globals and closures that its methods name.
"""

from __future__ import annotations

import functools
import sys
import types
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import torch
from torch import nn

from qcompiler.trace.containers import content, item, length

_INTERNAL = frozenset(nn.Module().__dict__)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_LIBRARIES = frozenset(sys.stdlib_module_names) | {"torch", "numpy", "qcompiler"}  # whose objects are no helpers of a model
CACHED = type(functools.lru_cache(len))  # a function with a cache
DEEPEST, _MOST = 8, 20_000  # levels of nesting, and holders: a trainer behind an attribute may lead to anything
MISSING: Any = type("Missing", (), {"__repr__": lambda self: "nothing"})()


@dataclass(frozen=True)
class Holder:
    """One dict, list, set, object with slots, class, closure cell, or function whose code names cells. `path`: the dotted name of what
    has it."""

    path: str
    owner: str  # path of the module that leads to it
    value: Any
    kind: Literal["dict", "list", "set", "class", "object", "cell", "function"]
    of: Any = None  # the module or object whose attributes a dict is

    def places(self) -> list[Any]:
        """The keys of what it has, in order."""
        if self.kind == "list":
            return list(range(length(self.value)))
        if self.kind == "dict":
            return [key for key in content(self.value) if not (isinstance(self.of, nn.Module) and key in _INTERNAL)]
        if self.kind in ("set", "function"):
            return []
        return ["value"] if self.kind == "cell" else _fields(self.value)

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
        if self.kind == "dict":
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
    part = f"{part}_" if not part or hasattr(nn.Module, part) or part in _INTERNAL else part
    return f"{path}.{part}".lstrip(".")


def holders(model: nn.Module) -> list[Holder]:
    """Every holder that the modules of a model lead to, each once, modules in their order."""
    found: list[Holder] = []
    seen: set[int] = {id(module) for module in model.modules()}
    classes: dict[type, None] = {}
    for path, module in model.named_modules():
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            function = getattr(hook, "__func__", hook)
            if isinstance(function, types.FunctionType):
                _function(function, path, found, seen)
        if type(module).__module__.startswith("torch.nn.") or isinstance(module, torch.jit.ScriptModule):
            continue
        _module(module, path, path, found, seen)
        for kind in type(module).__mro__:
            if kind not in classes and _is_users(kind):
                classes[kind] = None
                _class(kind, path, found, seen)
    return found


def _module(module: nn.Module, path: str, owner: str, found: list[Holder], seen: set[int]) -> None:
    """A module's attributes and buffers, and what they lead to."""
    found.append(Holder(path, owner, vars(module), "dict", module))
    found.append(Holder(path, owner, module._buffers, "dict"))
    seen |= {id(vars(module)), id(module._buffers)}
    for name, value in list(vars(module).items()):
        if name not in _INTERNAL:
            _walk(value, joined(path, name), owner, found, seen, 0)


def _walk(value: Any, path: str, owner: str, found: list[Holder], seen: set[int], depth: int) -> None:
    """Add what a value leads to."""
    value = getattr(value, "func" if isinstance(value, functools.partial) else "__wrapped__", value) if _is_around(value) else value
    if isinstance(value, (types.FunctionType, types.MethodType)):
        function = getattr(value, "__func__", value)
        if id(function) not in seen and isinstance(function, types.FunctionType) and _is_own(function):
            _function(function, owner, found, seen)
        return
    if isinstance(value, (*_PLAIN, torch.Tensor, nn.Module, type)) or id(value) in seen or depth > DEEPEST or len(found) > _MOST:
        return
    holder = _holder(value, path, owner)
    if holder is not None:
        seen.add(id(value))
        found.append(holder)
        keys: Any = holder.places()
    elif isinstance(value, tuple):
        keys = range(len(value))
    else:
        return
    for key in keys:
        item = value[key] if holder is None else holder.get(key)
        _walk(item, joined(path, key), owner, found, seen, depth + 1)


def _holder(value: object, path: str, owner: str) -> Holder | None:
    if isinstance(value, dict):
        return Holder(path, owner, value, "dict")
    if isinstance(value, (list, deque)):
        return Holder(path, owner, value, "list")
    if isinstance(value, set):
        return Holder(path, owner, value, "set")
    if not is_object(value):
        return None
    return Holder(path, owner, vars(value), "dict", value) if hasattr(value, "__dict__") else Holder(path, owner, value, "object")


def is_object(value: object) -> bool:
    """Whether a value is an instance of a class of the user's that is no module, function, class or member of an enum."""
    if isinstance(value, types.SimpleNamespace):
        return True
    kind = type(value)
    if isinstance(value, (nn.Module, torch.Tensor, type, types.ModuleType, types.FunctionType, types.MethodType, Enum, *_PLAIN)):
        return False
    return bool(kind.__flags__ & (1 << 9)) and _is_users(kind)  # 1 << 9: made by a class statement


def _fields(value: object) -> list[str]:
    if isinstance(value, type):
        return [name for name, item in vars(value).items() if not name.startswith("__") and _is_data(item)]
    kinds = type(value).__mro__
    return [name for kind in kinds for name in _names_of(kind.__dict__.get("__slots__", ())) if hasattr(value, name)]


def _is_own(function: types.FunctionType) -> bool:
    """Whether a function is the user's."""
    return (function.__module__ or "").partition(".")[0] not in _LIBRARIES


def _names_of(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _is_data(value: object) -> bool:
    return isinstance(value, (type(None), bool, int, float, torch.Tensor, list, dict, tuple)) or is_object(value)


def _is_users(kind: type) -> bool:
    return kind.__module__.partition(".")[0] not in _LIBRARIES


def _class(kind: type, owner: str, found: list[Holder], seen: set[int]) -> None:
    """What a class holds, and the globals and closures that its methods name."""
    found.append(Holder(owner, owner, kind, "class"))
    for name in _fields(kind):
        _walk(vars(kind)[name], joined(owner, name), owner, found, seen, 1)
    for function in vars(kind).values():
        function = getattr(function, "__func__", getattr(function, "fget", function))
        while function is not None:  # a decorator may keep something, too
            if isinstance(function, types.FunctionType) and id(function) not in seen:
                _function(function, owner, found, seen)
            function = getattr(function, "__wrapped__", None)


def _function(function: types.FunctionType, owner: str, found: list[Holder], seen: set[int]) -> None:
    """The cells and globals that a function names, and those of the functions of the user's among them."""
    seen.add(id(function))
    found.append(Holder(function.__name__, owner, function, "function"))
    new = [(name, cell) for name, cell in cells_of(function) if _mark(cell) not in seen]
    seen.update(_mark(cell) for _, cell in new)
    for name, cell in new:
        held = Holder(name, owner, cell, "cell")
        value = held.get("value")
        if isinstance(value, types.FunctionType) or _is_around(value):
            _walk(value, name, owner, found, seen, 1)
        elif isinstance(value, nn.Module) and id(value) not in seen:  # a hook may hold the model that this one is a copy of
            seen.add(id(value))
            _module(value, name, owner, found, seen)
        elif _is_data(value):
            found.append(held)
            _walk(value, name, owner, found, seen, 1)
    for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        _walk(value, function.__name__, owner, found, seen, 1)


def _is_around(value: object) -> bool:
    """Whether a value is no function, but calls one."""
    return isinstance(value, (functools.partial, CACHED))


def cells_of(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What the code of a function names outside of it, in the form of cells: closures, globals, names of modules of the user's."""
    yield from (
        (name, cell) for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False) if name != "__class__"
    )
    names = list(_global_names(function.__code__))
    modules = (value for name in names if isinstance(value := function.__globals__.get(name), types.ModuleType))
    for scope in (function.__globals__, *(vars(m) for m in modules if m.__name__.partition(".")[0] not in _LIBRARIES)):
        yield from ((name, Global(scope, name)) for name in names if name in scope)


def _mark(cell: Any) -> int:
    return hash((id(cell.names), cell.name)) if type(cell) is Global else id(cell)


class Global:
    """A global name, in the form of a closure's cell."""

    def __init__(self, names: dict[str, Any], name: str) -> None:
        self.names, self.name = names, name

    @property
    def cell_contents(self) -> Any:
        return self.names.get(self.name, MISSING)

    @cell_contents.setter
    def cell_contents(self, value: object) -> None:
        self.names[self.name] = value


def _global_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _global_names(inner)
