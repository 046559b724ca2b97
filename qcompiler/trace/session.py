"""One trace at a time: the process-wide lock, and the patches that hold while it is taken, for the tracing thread alone."""

from __future__ import annotations

import builtins
import contextlib
import functools
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch._functorch.utils as functorch_utils
from torch import nn
from torch.fx import _symbolic_trace

from qcompiler.trace import places
from qcompiler.trace.forward import call_wrapped
from qcompiler.trace.numbers import stand_ins
from qcompiler.trace.opaque import Opaque
from qcompiler.trace.proxy import Proxy, first_proxy
from qcompiler.trace.rewritten import rewritten
from qcompiler.trace.tracer import Tracer

_LOCK = threading.Lock()
_SIZED_METHODS = ("expand", "view", "reshape", "repeat", "tile", "new_zeros", "new_ones", "new_empty")
_SIZED_FUNCTIONS = ("zeros", "ones", "empty", "rand", "randn", "broadcast_shapes")
_LOGGER: object = logging.Logger
_MESSAGES: tuple[tuple[object, str], ...] = ((builtins, "print"), (warnings, "warn"), (_LOGGER, "isEnabledFor"), (_LOGGER, "_log"))
_DEPTH = 20_000  # Python frames: 150 nested modules take about ten each, and pytest's own come on top


@contextlib.contextmanager
def session(tracer: Tracer) -> Iterator[None]:
    """Hold the lock and let this thread's module calls, torch functions and fx-wrapped functions go to the tracer."""
    if _held_by_this_thread():
        raise RuntimeError("trace() was called from within a model that is being traced")
    with _LOCK, contextlib.ExitStack() as stack:
        stack.callback(setattr, _owner, "ident", None)  # first what takes it back: a Ctrl-C may come at any line
        _owner.ident = threading.get_ident()
        limit = sys.getrecursionlimit()
        stack.callback(sys.setrecursionlimit, limit)
        sys.setrecursionlimit(max(limit, _DEPTH))
        _patch_modules(tracer, stack)
        _patch_wrapped(tracer, stack)
        _patch_sizes(tracer, stack)
        _patch_isinstance(stack)
        _patch_messages(tracer, stack)
        _patch_autograd_functions(tracer, stack)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.no_grad())
        stack.enter_context(stand_ins(tracer))
        switches = tracer.float_parts.switches(lambda: not tracer.paused and _held_by_this_thread())
        stack.enter_context(rewritten(switches, tracer.float_parts.namespaces))
        stack.enter_context(tracer.calls.mode)
        yield


class _Owner:
    ident: int | None = None


_owner = _Owner()


def _held_by_this_thread() -> bool:
    return _owner.ident == threading.get_ident()


def _put(stack: contextlib.ExitStack, owner: object, name: str, value: object) -> None:
    """Give something an attribute until the stack is left. What takes it back has no line of ours, at which Ctrl-C could stop it."""
    if name in vars(owner):
        stack.callback(setattr, owner, name, vars(owner)[name])
    else:
        setattr(owner, name, getattr(owner, name))  # what is inherited: until here nothing has changed
        stack.callback(delattr, owner, name)
    setattr(owner, name, value)


def _patch_modules(tracer: Tracer, stack: contextlib.ExitStack) -> None:
    original = nn.Module.__call__

    def call(module: nn.Module, *args: object, **kwargs: object) -> Any:
        if tracer.paused or not _held_by_this_thread():
            return original(module, *args, **kwargs)
        return tracer.modules.call(module, original, args, kwargs)

    _put(stack, nn.Module, "__call__", call)


def _patch_isinstance(stack: contextlib.ExitStack) -> None:
    """`isinstance(x, Tensor)` is true of what stands for a tensor, in Python code; C++ code sees that it is none."""
    original = builtins.isinstance

    def check(instance: Any, classes: Any, /) -> bool:
        kind = type(instance)
        if kind is Proxy or kind is Opaque:  # most often it is neither, and torch asks thousands of times
            return original(instance, classes) or original(instance.example, classes)
        return original(instance, classes)

    _put(stack, builtins, "isinstance", check)


def _patch_messages(tracer: Tracer, stack: contextlib.ExitStack) -> None:
    """A size in a text that is only printed, warned of or logged is not held: no result depends on it."""
    for owner, name in _MESSAGES:
        _put(stack, owner, name, _shown(tracer, getattr(owner, name)))


def _shown(tracer: Tracer, function: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> Any:
        if tracer.paused or not _held_by_this_thread():
            return function(*args, **kwargs)
        tracer.holding.forget_words(places.user_frame(sys._getframe(1)))
        tracer.holding.shows += 1
        try:
            return function(*args, **kwargs)
        finally:
            tracer.holding.shows -= 1

    return call


def _patch_autograd_functions(tracer: Tracer, stack: contextlib.ExitStack) -> None:
    """A custom autograd.Function cannot be followed without losing its backward: the module that calls it stays a leaf."""
    owner: Any = functorch_utils  # `apply` calls it first, also one that was taken from its class before
    original = owner.unwrap_dead_wrappers

    def unwrap(args: object) -> object:
        if not tracer.paused and _held_by_this_thread() and first_proxy(args) is not None:
            cls = sys._getframe(1).f_locals.get("cls")
            raise tracer.error(f"custom autograd.Function {getattr(cls, '__name__', '')!r}")
        return original(args)

    _put(stack, owner, "unwrap_dead_wrappers", unwrap)


def _patch_sizes(tracer: Tracer, stack: contextlib.ExitStack) -> None:
    """`parameter.expand(n, -1)`, `torch.zeros(n, 3)`: torch's argument parser refuses a traced first size before it asks us."""
    for owner, names in ((torch.Tensor, _SIZED_METHODS), (torch, _SIZED_FUNCTIONS)):
        for name in names:
            _put(stack, owner, name, _sized(tracer, getattr(owner, name)))


def _sized(tracer: Tracer, function: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> Any:
        if tracer.paused or not _held_by_this_thread() or first_proxy(args) is None:
            return function(*args, **kwargs)
        return tracer.dispatch(function, args, kwargs, None)

    return call


def _patch_wrapped(tracer: Tracer, stack: contextlib.ExitStack) -> None:
    """Functions marked with torch.fx.wrap are followed like others, and become one call where that fails."""
    for (_, name), scope in list(_symbolic_trace._wrapped_fns_to_patch.items()):
        function = scope.get(name)
        if callable(function) and not isinstance(function, type):
            stack.callback(scope.__setitem__, name, function)
            scope[name] = _wrapped(tracer, function)


def _wrapped(tracer: Tracer, function: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> Any:
        if tracer.paused or not _held_by_this_thread():
            return function(*args, **kwargs)
        return call_wrapped(tracer, function, args, kwargs)

    return call
