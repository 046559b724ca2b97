"""Results of classes of the user's: dataclasses, named tuples, dicts and tuples of a class of their own, objects of registered classes.

A program holds how such a result is made, and the name of its class. A file never has a class imported: it gets one that is
registered with torch.utils._pytree in this process, or a plain record with the same fields.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections import OrderedDict, namedtuple
from types import UnionType
from typing import Any, ForwardRef, Union, get_args, get_origin, get_type_hints

import torch.utils._pytree as pytree
from torch import Tensor

from qcompiler.ops import trees

KINDS = ("dataclass", "named", "dict", "tuple", "tree")
NOT_FROM_FILES = ("torch", "builtins", "collections", "functools")  # what a file may not have made by the name of its class


class Record(OrderedDict):  # type: ignore[type-arg]
    """Stands for a dataclass that this process does not know: its fields as keys and as attributes. `stands_for`: the class's own name;
    a call takes it where it takes one of those."""

    stands_for = ""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)


class Maker:
    """Makes results of one class, or of a stand-in where `kind` is None, from the names and values that a program gives."""

    def __init__(self, name: str, kind: type | None) -> None:
        self.name, self.kind = name, kind

    def __call__(self, form: str, names: Any, values: Any, held: Any = None) -> Any:
        kind = self.kind
        if form == "tree" and kind is not None:
            return trees.put_together(kind)(values, held)
        if form == "named":
            return self.named(names, values)(*values)
        if form == "tuple":
            return (kind or tuple)(values)
        fields = dict(zip(names, values, strict=True))
        if form == "dict":
            return kind(fields) if kind else fields
        if kind:
            return kind(**fields)
        record = Record(fields)
        record.stands_for = self.name.rpartition(".")[2]
        return record

    def named(self, names: tuple[str, ...], values: tuple[object, ...]) -> Any:
        """The named tuple's class."""
        kinds = (type(v) if type(v) in (bool, int, float, str) else Tensor for v in values)
        return self.kind or stand_in(self.name.rpartition(".")[2], names, tuple(kinds))


@functools.cache
def stand_in(name: str, fields: tuple[str, ...], kinds: tuple[type, ...]) -> object:
    """A named tuple's class in place of one that this process does not know; TorchScript reads the types of its fields."""
    made = namedtuple(name, fields)  # type: ignore[misc]
    made.__annotations__ = dict(zip(fields, kinds, strict=True))
    return made


@functools.cache
def with_types(kind: object) -> object:
    """A named tuple's class whose fields have types where those of `kind` are text, as under `from __future__ import annotations`.

    TorchScript reads types alone, and its results are of a class of its own. NameError, TypeError where the text cannot be read.
    """
    if not isinstance(kind, type) or not hasattr(kind, "_fields"):
        return kind
    if not any(isinstance(declared, (str, ForwardRef)) for declared in inspect.get_annotations(kind).values()):
        return kind
    made = namedtuple(kind.__name__, kind._fields, defaults=tuple(kind._field_defaults.values()))  # type: ignore[attr-defined,misc]
    made.__module__ = kind.__module__
    made.__annotations__ = {name: _typed(declared) for name, declared in get_type_hints(kind).items()}
    return made


def _typed(declared: object) -> object:
    """The type with classes of named tuples replaced as `with_types` does."""
    inner = tuple(_typed(kind) for kind in get_args(declared))
    if not inner:
        return with_types(declared)
    origin = get_origin(declared)
    return Union[inner] if origin in (Union, UnionType) or origin is None else origin[inner]  # noqa: UP007


def form_of(kind: type) -> str | None:
    """How a class is written into a program; None where it cannot be."""
    if issubclass(kind, tuple):
        return "named" if hasattr(kind, "_fields") else "tuple"
    return "dataclass" if dataclasses.is_dataclass(kind) else "dict" if issubclass(kind, dict) else None


def qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def registered(name: str) -> type | None:
    """The class of this qualified name that somebody registered as a node of a pytree, in this process; nothing is imported."""
    known = (kind for kind in list(pytree.SUPPORTED_NODES) if isinstance(kind, type) and qualified(kind) == name)
    return next((kind for kind in known if kind.__module__.partition(".")[0] not in NOT_FROM_FILES), None)
