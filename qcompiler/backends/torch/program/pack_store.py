"""Packs that several programs have in common: the same call on the same tensors gives the same object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from qcompiler.backends.torch.program.statements import Call
from qcompiler.backends.torch.program.values import Const, Scale, ZeroPoint
from qcompiler.ir.nested import Ref, walk


@dataclass
class _Entry:
    pack: Any
    tensors: list[Tensor]  # held, so that no other tensor gets their identity
    owners: set[int] = field(default_factory=set)


class PackStore:
    """What `run_once` has made for the modules that share it. A module that is built anew leaves what it had to the others.

    It is of a process: copies and pickles begin with an empty one.
    """

    def __init__(self) -> None:
        self._entries: dict[object, _Entry] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> PackStore:
        return PackStore()

    def __reduce__(self) -> tuple[Any, ...]:
        return PackStore, ()

    def leave(self, owner: int) -> None:
        for key in list(self._entries):
            self._entries[key].owners.discard(owner)
            if not self._entries[key].owners:
                del self._entries[key]

    def made(self, owner: int, key: object, tensors: list[Tensor], make: Callable[[], object]) -> Any:
        """The pack under a key, made where there is none."""
        found = self._entries.get(key)
        if found is None:
            found = self._entries[key] = _Entry(make(), tensors)
        found.owners.add(owner)
        return found.pack


def key_of(call: Call, tensor: Callable[[str], Tensor], made: dict[str, Any], qparams: Callable[[Any], object]) -> tuple[Any, list[Tensor]]:
    """What tells one call from another: its operation and settings, and the very tensors and packs that it is made of."""
    tensors: list[Tensor] = []

    def spelled(value: object) -> str:
        if isinstance(value, Const):
            held = tensor(value.name)
            tensors.append(held)
            return f"tensor {id(held)} {held._version}"
        if isinstance(value, Ref):
            return f"pack {id(made[value.name])}"
        return f"{type(value).__name__} {qparams(value) if isinstance(value, (Scale, ZeroPoint)) else value!r}"

    values = tuple(map(spelled, (*walk(call.args), *walk(list(call.kwargs.values())))))
    return (call.op, tuple(call.kwargs), values), tensors
