"""Containers of the user's model (Sequential, ModuleList, ModuleDict, ParameterList, ...) in what was made of it: indexed as they were.

A prepared or converted module keeps what it needs under the user's names. A note of each container's keys, an attribute of the root,
goes into copies, pickles and files, and its modules are given the class that answers from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from torch import nn

from qcompiler.errors import ConfigError
from qcompiler.ir.names import safe_path

ITEMS = "_qcompiler_items"  # on the root: {path of a container: ["list" or "dict", its keys]}
PLACES = "_qcompiler_places"  # on each container: {the user's key: the name of the child here}
LISTS = (nn.Sequential, nn.ModuleList, nn.ParameterList)
DEEPEST = 32  # a file may name any path, and torch walks modules by recursion
DICTS = (nn.ModuleDict, nn.ParameterDict)


class Absent(nn.Module):
    """Stands where nothing of a container's module is left: it was merged into others, or is an op without state."""

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises ConfigError: what it computed is part of other layers."""
        raise ConfigError("nothing of this module is left: it was merged into other layers", code="absent-module",
                          hint="call the whole model")  # fmt: skip


class _Items:
    def _child(self, key: str) -> Any:
        name = vars(self)[PLACES][key]
        for table in ("_modules", "_parameters", "_buffers"):
            if vars(self)[table].get(name) is not None:
                return vars(self)[table][name]
        return Absent()

    def __len__(self) -> int:
        return len(vars(self)[PLACES])


class ListItems(_Items):
    """Indexed by position, as in the user's container; a slice is a ModuleList of the same modules (a list, of tensors)."""

    def __getitem__(self, index: Any) -> Any:
        keys = list(vars(self)[PLACES])
        if not isinstance(index, slice):
            return self._child(keys[index])
        found = [self._child(key) for key in keys[index]]
        return nn.ModuleList(found) if all(isinstance(item, nn.Module) for item in found) else found

    def __iter__(self) -> Iterator[Any]:
        return map(self._child, vars(self)[PLACES])

    def __contains__(self, item: object) -> bool:
        return any(item is held for held in self)


class DictItems(_Items):
    """Looked up by key, with keys(), values() and items()."""

    def __getitem__(self, key: str) -> Any:
        return self._child(key)

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self)[PLACES])

    def __contains__(self, key: object) -> bool:
        return key in vars(self)[PLACES]

    def keys(self) -> list[str]:
        """The keys, in order."""
        return list(vars(self)[PLACES])

    def values(self) -> list[Any]:
        """What stands under the keys."""
        return [self._child(key) for key in vars(self)[PLACES]]

    def items(self) -> list[tuple[str, Any]]:
        """Pairs of the two."""
        return list(zip(self.keys(), self.values(), strict=True))


class ListScope(ListItems, nn.Module):
    """A list's place in a graph module."""


class DictScope(DictItems, nn.Module):
    """A dict's place in a graph module."""


SCOPES: dict[type, dict[str, type]] = {nn.Module: {"list": ListScope, "dict": DictScope}}


def items_of(model: nn.Module) -> dict[str, list[object]]:
    """The note of a model's containers."""
    found: dict[str, list[Any]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LISTS):
            keys = list(map(str, range(len(module)))) if isinstance(module, nn.ParameterList) else list(module._modules)
            found[path] = ["list", keys]
        elif isinstance(module, DICTS):
            found[path] = ["dict", list(module.keys())]
    return {path: entry for path, entry in found.items() if entry[1]}


def give_items(root: nn.Module, classes: Mapping[type, Mapping[str, type]], names: Mapping[str, str] | None = None) -> str | None:
    """Makes the containers that the root's note names answer from it; `classes`: of a plain scope, and of its two kinds.

    `names`: what stands for the user's names here. Returns the kind of the root itself, whose class is the caller's. A note that
    does not fit, as a damaged file may have, is passed over.
    """
    note, table = getattr(root, ITEMS, None), dict(names or {})
    kind = None
    for path, entry in note.items() if isinstance(note, dict) else ():
        keys = entry[1] if isinstance(entry, list) and len(entry) == 2 and entry[0] in ("list", "dict") else None
        if not isinstance(keys, list) or not keys or not all(isinstance(key, str) for key in keys):
            continue
        held = _scope(root, safe_path(table, str(path)), next(iter(classes)))
        if held is root or type(held) in classes:
            vars(held)[PLACES] = {key: safe_path(table, key) for key in keys}
        if held is root:
            kind = str(entry[0])
        elif type(held) in classes:
            held.__class__ = classes[type(held)][entry[0]]
    return kind


def _scope(root: nn.Module, path: str, plain: type[nn.Module]) -> object:
    """What stands at a path; where nothing of a container is left, but of the module that held it, a scope to stand for it."""
    *outer, last = path.split(".")
    module: nn.Module | None = root
    for part in outer:
        module = module._modules.get(part) if isinstance(module, nn.Module) else None
    if not last or not isinstance(module, nn.Module):
        return None if last else root
    if last not in {**module._parameters, **module._buffers, **module._modules} and len(outer) < DEEPEST:
        module._modules[last] = plain()
    return module._modules.get(last)
