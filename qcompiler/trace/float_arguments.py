"""What a statement on its own reads, as arguments of a function: variables, and what `self.scale` or `self.layers` in it stand for."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from qcompiler.trace.mode import Training
from qcompiler.trace.opaque import Opaque
from qcompiler.trace.proxy import Proxy, Sizes

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format)
_KEYS = (type(None), bool, int, float, str)
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


class RefusedPart(Exception):
    """A statement cannot be a part of its own; the text says why, as a clause."""


@dataclass
class Arguments:
    """`values`: by argument's name; `chains`: the text of an expression on a module -> the argument that it is given as."""

    values: dict[str, Any] = field(default_factory=dict)
    chains: dict[str, str] = field(default_factory=dict)

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {name: value for name, value in self.values.items() if isinstance(value, nn.Module)}


def arguments_of(statements: Sequence[ast.stmt], reads: Sequence[str], variables: Mapping[str, Any]) -> Arguments:
    """The arguments of statements that read these variables. Raises RefusedPart for a value that no graph has."""
    found = Arguments()
    owners = {name: variables[name] for name in reads if isinstance(variables.get(name), nn.Module)}
    for name in reads:
        if name in variables and name not in owners:
            _check(variables[name], name)
            found.values[name] = variables[name]
    for statement in statements:
        _chains(statement, owners, found)
    return found


def _check(value: Any, name: str) -> None:
    if not _is_value(value):
        raise RefusedPart(f"`{name}` is a {type(value).__name__}, which no graph has as a value")


def _is_value(value: Any) -> bool:
    """Whether a value can be an argument: of tensors, numbers and plain values, in plain containers."""
    kind = type(value)
    if kind in (Proxy, Opaque, Training) or isinstance(value, torch.Tensor) or kind in _PLAIN:
        return True
    if kind in (list, tuple, Sizes):
        return all(map(_is_value, tuple.__iter__(value) if kind is Sizes else value))
    return kind is dict and all(type(key) in _KEYS and _is_value(item) for key, item in value.items())


def _chains(node: ast.AST, owners: Mapping[str, nn.Module], found: Arguments) -> None:
    """Note what each expression on a module stands for: the longest one that is a module, a tensor or a plain value."""
    if isinstance(node, (ast.Attribute, ast.Subscript, ast.Name)) and (steps := _steps(node)) is not None and steps[0] in owners:
        text, value = _resolved(steps[0], owners[steps[0]], steps[1:])
        taken = {argument for chain, argument in found.chains.items() if chain != text} | set(found.values)
        name = found.chains.get(text) or free(re.sub(r"\W+", "_", text).strip("_") or "value", taken)
        found.chains[text], found.values[name] = name, value
        return
    for child in ast.iter_child_nodes(node):
        _chains(child, owners, found)


def _steps(node: ast.expr) -> list[Any] | None:
    """The variable, attributes and constant indices of `self.layers[0].weight`; None for any other expression."""
    steps: list[Any] = []
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute):
            steps.insert(0, f".{node.attr}")
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and type(node.slice.value) in (int, str):
            steps.insert(0, node.slice.value)
        else:
            return None
        node = node.value
    return [node.id, *steps]


def free(name: str, taken: set[str]) -> str:
    """A name that is not taken."""
    while name in taken:
        name += "_"
    return name


def _resolved(root: str, module: nn.Module, steps: Sequence[Any]) -> tuple[str, Any]:
    """How far a chain of attributes and indices leads through modules, and to what."""
    text, value = root, module
    for step in steps:
        is_index = not (isinstance(step, str) and step.startswith("."))
        if is_index and type(value) not in _CONTAINERS:
            return text, value
        name = (list(value._modules)[step] if type(step) is int else step) if is_index else step[1:]
        text_before, text = text, f"{text}[{step!r}]" if is_index else f"{text}.{name}"
        if isinstance(item := value._modules.get(name), nn.Module):
            value = item
            continue
        found = getattr(value, name, None)
        if callable(found) and not isinstance(found, torch.Tensor):
            if type(value).__module__.startswith("torch.nn."):
                return text_before, value
            raise RefusedPart(f"it calls `{text}`, for which it needs `{text_before}` as a whole")
        _check(found, text)
        return text, found
    return text, value
