"""Numbers that torch takes and TorchScript does not: whole ones for floats (`F.normalize(x, p=2)` is spelled with 2.0), None for a size."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.statements import Call
from qcompiler.ir.nested import Ref

SPACES = {registry.METHOD: "", "torch.": "", "F.": "", "special.": "special_", "linalg.": "linalg_"}  # what names of aten begin with
WHOLE = {"int", "SymInt", "number"}  # types of which one takes the number as it is


def with_floats(call: Call) -> Call:
    """The call with floats wherever it gives a whole number to an argument that is a float."""
    if not any(type(value) is int for value in (*call.args, *call.kwargs.values())):
        return call
    types = _types(call.op)
    args = tuple(_float(value, types.get(place)) for place, value in enumerate(call.args))
    return replace(call, args=args, kwargs={key: _float(value, types.get(key)) for key, value in call.kwargs.items()})


def sizes_kept(call: Call, free: Callable[[str], str]) -> list[Call]:
    """The call, where it is an adaptive pool that keeps a size (None) behind those that read the size. `free`: a name for each."""
    given = call.args[1] if len(call.args) > 1 else call.kwargs.get("output_size")
    if not call.op.startswith("F.adaptive_") or not isinstance(given, (tuple, list)) or None not in given:
        return [call]
    names = {i: free("size") for i, size in enumerate(given) if size is None}
    reads = [Call(name, f"{registry.METHOD}size", (call.args[0], i - len(given))) for i, name in names.items()]
    sizes = tuple(Ref(names[i]) if i in names else size for i, size in enumerate(given))
    rest = {key: value for key, value in call.kwargs.items() if key != "output_size"}
    return [*reads, replace(call, args=(call.args[0], sizes), kwargs=rest)]


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
