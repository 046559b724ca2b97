"""One check at the public functions: each argument is of a kind that its annotation names."""

from __future__ import annotations

import functools
import inspect
import numbers
import operator
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from qcompiler.errors import ConfigError
from qcompiler.inputs.near_names import near_names

F = TypeVar("F", bound=Callable[..., object])
NAMED: dict[object, str] = {
    str: "a text", bool: "True or False", int: "a whole number", float: "a number", Path: "a path", os.PathLike: "a path",
    type(None): "None", torch.dtype: "a torch.dtype", typing.IO: "an open file",
}  # fmt: skip
OF_ITEMS: dict[object, str] = {
    Sequence: "a list", list: "a list", tuple: "a tuple", Collection: "a list, tuple or set", Iterable: "an iterable", Mapping: "a dict",
    dict: "a dict",
}  # fmt: skip


def door(function: F) -> F:
    """The function, which raises ConfigError (`argument`) for an argument that is of no kind that its annotation names.

    Modules, and what is annotated as `object` or `Any`, the function judges itself. An iterable that can be read only once is handed on
    as a list.
    """
    names = [p.name for p in inspect.signature(function).parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]

    @functools.cache
    def kinds() -> dict[str, object]:  # at the first call: what annotations name may be imported later
        return {name: kind for name in function.__annotations__ if (kind := _annotated(function, name)) is not None}

    @functools.cache
    def options() -> dict[str, object] | None:
        """The kinds of what stands behind `**options`, where a TypedDict names them."""
        rest = next((p.name for p in inspect.signature(function).parameters.values() if p.kind is p.VAR_KEYWORD), "")
        return typing.get_type_hints(typing.get_args(kinds()[rest])[0]) if _origin(kinds().get(rest)) is typing.Unpack else None

    @functools.wraps(function)
    def run(*args: object, **kwargs: object) -> object:
        known, more = kinds(), options()
        if more is not None:
            _refuse_unknown(function, [name for name in kwargs if name not in known and name not in more], more)
        given = [_checked(function, name, value, known) for name, value in zip(names, args)]
        by_name = {name: _checked(function, name, value, known if name in known else more or {}) for name, value in kwargs.items()}
        return function(*given, *args[len(names) :], **by_name)

    return run  # type: ignore[return-value]


def _refuse_unknown(function: Callable[..., object], unknown: Sequence[str], known: Iterable[str]) -> None:
    if unknown:
        near = near_names(unknown[0], sorted(known))
        hint = f"did you mean {', '.join(near)}?" if near else f"the options are {', '.join(sorted(known))}"
        raise ConfigError(f"{function.__name__}: there is no option {unknown[0]}", code="option", hint=hint)


def _checked(function: Callable[..., object], name: str, value: object, kinds: Mapping[str, object]) -> object:
    """The value of an argument, as it is handed on."""
    if name not in kinds:
        return value
    if isinstance(value, Iterator) and any(_origin(kind) is Iterable for kind in _members(kinds[name])):
        value = list(value)
    if not _fits(value, kinds[name]):
        text = f"{function.__name__}: {name} must be {' or '.join(dict.fromkeys(_texts(kinds[name])))}, got {_told(value)}"
        raise ConfigError(text, code="argument", hint=_hint(function, name))
    return value


def _annotated(function: Callable[..., object], name: str) -> object:
    """What an annotation means; None where it names what is imported for type checkers alone."""
    holder = types.SimpleNamespace(__annotations__={name: function.__annotations__[name]})
    try:
        return typing.get_type_hints(holder, globalns=function.__globals__)[name]
    except NameError:
        return None


def _hint(function: Callable[..., object], name: str) -> str | None:
    found = inspect.signature(function).parameters.get(name)
    if found is not None and (found.default is None or isinstance(found.default, (str, int, float, tuple))):
        return f"leave it out for {found.default!r}"
    return None if found is not None and found.default is found.empty else "leave it out"


def _told(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(value) if isinstance(value, (str, bytes, int, float, list, tuple, dict, set, type(None))) else ""
    return text if text and len(text) <= 40 else f"a {type(value).__name__}"


def _origin(kind: object) -> object:
    return typing.get_origin(kind) or kind


def _members(kind: object) -> tuple[object, ...]:
    """The kinds of a union."""
    return typing.get_args(kind) if _origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _texts(kind: object) -> list[str]:
    """What a message calls a kind."""
    return [_text(one) for one in _members(kind)]


def _many(kind: object) -> str:
    """What a message calls several of a kind."""
    return " or ".join(re.sub(r"^an? (\S+( number)?)", r"\1s", text) for text in dict.fromkeys(_texts(kind)))


def _text(kind: object) -> str:
    origin, inner = _origin(kind), typing.get_args(kind)
    if origin is Callable:
        return "a function"
    if origin is typing.Literal:
        return " or ".join(map(repr, inner))
    if origin is type:
        return "a class"
    if origin in OF_ITEMS:
        of = [_many(one) for one in inner if one is not Ellipsis and one not in (object, typing.Any)]
        return f"{OF_ITEMS[origin]} of {' to '.join(of)}" if of and len(of) == len(inner) else str(OF_ITEMS[origin])
    name: str = getattr(origin, "__name__", str(origin))
    return NAMED.get(origin, f"a {name}")


def _fits(value: object, kind: object) -> bool:
    return any(_is(value, one) for one in _members(kind))


def _is(value: object, kind: object) -> bool:
    """Whether a value is of a kind that is no union."""
    origin, inner = _origin(kind), typing.get_args(kind)
    if kind is typing.Any or origin is object or isinstance(kind, (TypeVar, typing.ForwardRef)):
        return True
    if origin in NUMBERS:
        return NUMBERS[origin](value)
    if origin is Callable:
        return callable(value)
    if origin is typing.Literal:
        return any(value is one or (type(value) is type(one) and value == one) for one in inner)
    if origin is typing.IO:
        return callable(getattr(value, "write", None))
    if origin in (Path, os.PathLike):
        return isinstance(value, os.PathLike) and isinstance(os.fspath(value), str)
    if not isinstance(origin, type) or issubclass(origin, nn.Module):
        return True
    if getattr(origin, "_is_protocol", False) and not getattr(origin, "_is_runtime_protocol", False):
        return True
    if isinstance(value, (str, bytes, torch.Tensor)) and origin in OF_ITEMS:  # its letters or rows are not what was meant
        return False
    return isinstance(value, origin) and _holds(value, origin, inner)


def _holds(value: object, origin: object, inner: Sequence[object]) -> bool:
    """Whether the items of a container are of their kinds; those of what is no plain container are not looked at."""
    if not inner or not isinstance(value, (list, tuple, set, frozenset, dict)):
        return True
    if isinstance(value, dict):
        return len(inner) < 2 or all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if origin is tuple and Ellipsis not in inner:
        return len(value) == len(inner) and all(_fits(item, one) for item, one in zip(value, inner))
    return all(_fits(item, inner[0]) for item in value)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, (bool, type, torch.Tensor)) and _indexes(value)


def _indexes(value: object) -> bool:
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:  # an array of several
        return False
    return True


NUMBERS: dict[object, Callable[[object], bool]] = {
    bool: lambda value: isinstance(value, (bool, np.bool_)) or (_is_whole(value) and value in (0, 1)),
    int: _is_whole, float: _is_number,
}  # fmt: skip
