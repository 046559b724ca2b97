"""Functions of the user's that remember their results (functools.lru_cache) are called anew for traced values.

A cache asks for the hash of what it is given, which holds every size there fixed, and it would hand what a trace made to the float model
and to later traces, as long as the process lives.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from qcompiler.trace.opened import holds_tensors
from qcompiler.trace.proxy import first_proxy
from qcompiler.trace.slots import CACHED, Holder, cells_of

_Place = tuple[Any, Callable[[Any], None]]  # what stands there, and what puts something else there


@contextlib.contextmanager
def called_anew(holders: Iterable[Holder], is_traced: Callable[[], bool]) -> Iterator[None]:
    """Let functions without a cache stand where these places have one with a cache."""
    with contextlib.ExitStack() as stack:
        made: dict[int, Any] = {}
        for value, put in _places(holders):
            cached = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
            if type(cached) is CACHED:
                anew = made.setdefault(id(cached), _anew(cached, is_traced))
                stack.callback(put, value)
                put(anew if cached is value else type(value)(anew))
        yield


def _places(holders: Iterable[Holder]) -> Iterator[_Place]:
    """Where the code of a model finds functions: what it names, and attributes."""
    for holder in holders:
        if holder.kind == "function":
            for _, cell in cells_of(holder.value):
                with contextlib.suppress(ValueError):  # a cell that nothing has been put into
                    yield cell.cell_contents, functools.partial(setattr, cell, "cell_contents")
        elif holder.kind == "class":
            for name, value in list(vars(holder.value).items()):
                yield value, functools.partial(type.__setattr__, holder.value, name)
        elif holder.kind == "dict":
            for key, value in list(dict.items(holder.value)):
                yield value, functools.partial(dict.__setitem__, holder.value, key)


def _anew(cached: Any, is_traced: Callable[[], bool]) -> Callable[..., Any]:
    """A function like one with a cache, which computes anew what a trace follows. What a cache gave before stays as it is."""

    @functools.wraps(cached)
    def call(*args: object, **kwargs: object) -> Any:
        if not is_traced():
            return cached(*args, **kwargs)
        given = (*args, *kwargs.values())
        if first_proxy(given) is not None or any(isinstance(value, nn.Module) or holds_tensors(value) for value in given):
            return cached.__wrapped__(*args, **kwargs)
        result = cached(*args, **kwargs)
        if first_proxy(result) is not None:  # made of a global tensor
            cached.cache_clear()
        return result

    for name in ("cache_info", "cache_clear", "cache_parameters"):
        setattr(call, name, getattr(cached, name))
    return call
