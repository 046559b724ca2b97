"""Whole numbers that torch takes for floats, and TorchScript does not: `F.normalize(x, p=2)` is spelled with 2.0."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import replace

import torch

from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.statements import Call

SPACES = {registry.METHOD: "", "torch.": "", "F.": "", "special.": "special_", "linalg.": "linalg_"}  # what names of aten begin with
WHOLE = {"int", "SymInt", "number"}  # types of which one takes the number as it is


def with_floats(call: Call) -> Call:
    """The call with floats wherever it gives a whole number to an argument that is a float."""
    if not any(type(value) is int for value in (*call.args, *call.kwargs.values())):
        return call
    types = _types(call.op)
    args = tuple(_float(value, types.get(place)) for place, value in enumerate(call.args))
    return replace(call, args=args, kwargs={key: _float(value, types.get(key)) for key, value in call.kwargs.items()})


def _float(value: object, kinds: frozenset[str] | None) -> object:
    return float(value) if type(value) is int and kinds and "float" in kinds and not kinds & WHOLE else value


@functools.cache
def _types(op: str) -> Mapping[int | str, frozenset[str]]:
    """The types of each argument of an operation, in all its overloads, by place and by name."""
    space = next((space for space in SPACES if op.startswith(space)), None)
    if space is None:
        return {}
    name = op.removeprefix(space)
    function = registry.table().get(op)
    if inspect.isfunction(function):
        found = [[(p.name, str(p.annotation)) for p in inspect.signature(function).parameters.values()]]
    else:
        packet = getattr(torch.ops.aten, SPACES[space] + name, None)
        schemas = [getattr(packet, overload)._schema for overload in packet.overloads()] if packet is not None else []
        found = [[(a.name, str(a.type)) for a in schema.arguments] for schema in schemas]
    types: dict[int | str, set[str]] = {}
    for arguments in found:
        for place, (argument, kind) in enumerate(arguments):
            plain = kind.removeprefix("<class '").removesuffix("'>").removeprefix("typing.").removeprefix("Optional[").removesuffix("]")
            kinds = {part.strip() for part in plain.removeprefix("List[").split("|")}
            for key in (place, argument):
                types.setdefault(key, set()).update(kinds)
    return {key: frozenset(kinds) for key, kinds in types.items()}
