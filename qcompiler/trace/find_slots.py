"""The walk from a model's modules to all that a forward can keep something in: what they hold, and what their methods name.

The cache of `functools.lru_cache` is none of it: it cannot be looked into. For the time of a trace such functions run without theirs, or
the user's calls would find traced values there.
"""

from __future__ import annotations

import functools
import threading
import types
from collections import UserDict, UserList, deque
from collections.abc import Iterator
from contextvars import ContextVar, Token
from typing import Any

import torch
from torch import nn

from qcompiler.trace.slots import (
    DEEPEST,
    INTERNAL,
    MISSING,
    PLAIN,
    Holder,
    data_fields,
    is_data,
    is_object,
    is_users,
    is_users_name,
    joined,
)
from qcompiler.trace.watched import Watched, watch

_MOST = 20_000  # holders: a trainer behind an attribute may lead to anything


class Walk:
    """`holders`: every holder that the modules of a model lead to, each once, modules in their order. `watched`: what can change besides,
    and has no places that a graph could carry. `caches`: where functions with a cache stand, and the same ones without."""

    def __init__(self, model: nn.Module) -> None:
        self.holders: list[Holder] = []
        self.watched: list[Watched] = []
        self.caches: list[tuple[Holder, object, object]] = []
        self._owner = ""  # path of the module that leads to what is found
        self._seen: set[int] = {id(module) for module in model.modules()}
        for path, module in model.named_modules():
            self._owner = path
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
                function = getattr(hook, "__func__", hook)
                if isinstance(function, types.FunctionType):
                    self._function(function)
            if type(module).__module__.startswith("torch.nn.") or isinstance(module, torch.jit.ScriptModule):
                continue
            self._module(module, path)
            for kind in type(module).__mro__:
                self._class(kind, path)

    def _module(self, module: nn.Module, path: str) -> None:
        """A module's attributes and buffers, and what they lead to. (Those of a scripted module are not Python's.)"""
        if isinstance(module, torch.jit.ScriptModule):
            return
        holder = Holder(path, self._owner, vars(module), "dict", module)
        self._hold(holder)
        self._hold(Holder(path, self._owner, module._buffers, "dict"))
        for name, value in list(vars(module).items()):
            if name not in INTERNAL:
                self._cache(holder, name, value)
                self._walk(value, joined(path, name), 0)

    def _cache(self, holder: Holder, key: object, value: object) -> None:
        """Note a function of the user's that keeps its results."""
        inner = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
        if isinstance(inner, functools._lru_cache_wrapper) and is_users(inner.__wrapped__):  # type: ignore[arg-type]
            plain = inner.__wrapped__
            self.caches.append((holder, key, type(value)(plain) if isinstance(value, (staticmethod, classmethod)) else plain))

    def _hold(self, holder: Holder) -> None:
        self._seen.add(id(holder.value))
        self.holders.append(holder)

    def _walk(self, value: object, path: str, depth: int) -> None:
        """Add what a value leads to."""
        if isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self._walk(part, path, depth + 1)
        elif isinstance(value, types.MethodType):
            self._walk(value.__func__, path, depth + 1)
            self._walk(value.__self__, path, depth + 1)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, functools._lru_cache_wrapper):
            self._walk(value.__wrapped__, path, depth + 1)
        elif isinstance(value, (UserDict, UserList)):
            self._walk(value.data, path, depth + 1)
        elif not isinstance(value, (*PLAIN, torch.Tensor, nn.Module, type)) and id(value) not in self._seen:
            self._things(value, path, depth)

    def _things(self, value: Any, path: str, depth: int) -> None:
        """What a container or an object of the user's has."""
        if depth > DEEPEST or len(self.holders) > _MOST:
            return
        holder, keys = _holder(value, path, self._owner), range(0)
        if holder is not None:
            self._hold(holder)
            keys = holder.places()  # type: ignore[assignment]
            if is_object(value):
                self._class(type(value), path)
        elif isinstance(value, tuple):
            keys = range(len(value))
        elif (watched := watch(value, path, self._owner)) is not None:
            self._seen.add(id(value))
            self.watched.append(watched)
        for key in keys:
            self._walk(value[key] if holder is None else holder.get(key), joined(path, key), depth + 1)

    def _class(self, kind: type, path: str) -> None:
        """What a class of the user's holds, and what its methods name."""
        if id(kind) in self._seen or not is_users(kind) or len(self.holders) > _MOST:
            return
        holder = Holder(path, self._owner, kind, "class")
        self._hold(holder)
        for name in data_fields(kind):
            self._walk(vars(kind)[name], joined(path, name), 1)
        for name, value in list(vars(kind).items()):
            self._cache(holder, name, value)
            function = getattr(value, "__func__", getattr(value, "fget", value))
            while function is not None:  # what a decorator made may keep something in its closure
                if isinstance(function, (types.FunctionType, functools._lru_cache_wrapper)):
                    self._walk(function, joined(path, name), 1)
                function = getattr(function, "__wrapped__", None)

    def _function(self, function: types.FunctionType) -> None:
        """A function of the user's: its attributes and defaults, the cells and globals that it names, and what those lead to."""
        if id(function) in self._seen or not is_users(function):
            return
        self._seen.add(id(function))
        name = function.__name__
        if vars(function):
            self._hold(Holder(name, self._owner, vars(function), "dict", function))
        for given in (vars(function), _defaults(function)):
            for key, value in given.items():
                self._walk(value, joined(name, key), 1)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            if name != "__class__" and id(cell) not in self._seen:
                self._seen.add(id(cell))
                self._cell(name, cell)
        self._globals(function.__globals__, dict.fromkeys(_names(function.__code__)))

    def _globals(self, having: dict[str, object], names: dict[str, None], path: str = "") -> None:
        """The globals of a module of Python among some names; of the user's modules among them those of theirs."""
        for name in names:
            key = hash((id(having), name))
            if name not in having or key in self._seen:
                continue
            self._seen.add(key)
            value = having[name]
            if isinstance(value, types.ModuleType):
                if not path and is_users_name(value.__name__):
                    self._globals(vars(value), names, name)
            else:
                self._cell(joined(path, name), Global(having, name))

    def _cell(self, name: str, cell: object) -> None:
        held = Holder(name, self._owner, cell, "cell")
        value = held.get("value")
        self._cache(held, "value", value)
        if isinstance(value, nn.Module):
            if id(value) not in self._seen:  # a hook may hold the model that this one is a copy of
                self._seen.add(id(value))
                self._module(value, name)
        elif isinstance(value, type):
            self._class(value, name)
        elif isinstance(value, ContextVar):
            self._cell(name, _Context(value))
        else:
            if is_data(value) or isinstance(cell, _Context):
                self.holders.append(held)
            self._walk(value, name, 1)


def _holder(value: object, path: str, owner: str) -> Holder | None:
    if isinstance(value, dict):
        return Holder(path, owner, value, "dict")
    if isinstance(value, (list, deque)):
        return Holder(path, owner, value, "list")
    if isinstance(value, set):
        return Holder(path, owner, value, "set")
    if not is_object(value) and not isinstance(value, threading.local):
        return None
    return Holder(path, owner, vars(value), "dict", value) if hasattr(value, "__dict__") else Holder(path, owner, value, "object")


def _defaults(function: types.FunctionType) -> dict[str, object]:
    """By name the values that its arguments have where nobody gives others."""
    code, given = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount]
    return dict(zip(names[len(names) - len(given) :], given, strict=True)) | (function.__kwdefaults__ or {})


class Global:
    """A global name, in the form of a closure's cell."""

    def __init__(self, names: dict[str, object], name: str) -> None:
        self.names, self.name = names, name

    @property
    def cell_contents(self) -> object:
        return self.names.get(self.name, MISSING)

    @cell_contents.setter
    def cell_contents(self, value: object) -> None:
        self.names[self.name] = value


class _Context:
    """A context variable, in the form of a closure's cell."""

    def __init__(self, variable: ContextVar[object]) -> None:
        self.variable = variable
        self._before: Token[object] | None = None

    @property
    def cell_contents(self) -> object:
        return self.variable.get(MISSING)

    @cell_contents.setter
    def cell_contents(self, value: object) -> None:
        token = self.variable.set(value)
        self._before = self._before or (token if token.old_value is Token.MISSING else None)

    def unset(self) -> None:
        if self._before is not None:
            self.variable.reset(self._before)
            self._before = None


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names(inner)
