"""A graph with its notes as plain data that pickle takes, and back. (torch.fx pickles code, and traces a graph without notes from it.)"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from qcompiler.ir.types import QUANT, SOURCE, VALUE
from qcompiler.ops.float_statements import given_back, held

NOTES = (VALUE, SOURCE, QUANT)
Data = list[tuple[Any, ...]]


@dataclass(frozen=True)
class _Reference:
    """Stands for a node among the arguments of another."""

    name: str


@dataclass(frozen=True)
class _Named:
    """A function of torch that pickle does not find by itself (F.max_pool2d and others are made by a function)."""

    module: str
    name: str

    @staticmethod
    def of(target: object) -> Any:
        name = getattr(target, "__name__", None)
        module = next((m for m in (F, torch) if isinstance(name, str) and getattr(m, name, None) is target), None)
        return held(target) if module is None else _Named(module.__name__, str(name))

    def found(self) -> Any:
        return getattr(importlib.import_module(self.module), self.name)


def to_data(graph: fx.Graph) -> Data:
    """One entry a node, in order."""
    return [_entry(node) for node in graph.nodes]


def _entry(node: fx.Node) -> tuple[Any, ...]:
    arguments = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: _Reference(n.name))  # type: ignore[arg-type, return-value]
    return node.op, node.name, _Named.of(node.target), arguments, {key: node.meta[key] for key in NOTES if key in node.meta}


def from_data(data: Data) -> fx.Graph:
    """The graph that `to_data` wrote."""
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}

    def value(v: Any) -> Any:
        if isinstance(v, _Reference):
            return made[v.name]
        if isinstance(v, (tuple, list)):
            return tuple(map(value, v)) if isinstance(v, tuple) else list(map(value, v))
        if isinstance(v, dict):
            return {key: value(item) for key, item in v.items()}
        return slice(value(v.start), value(v.stop), value(v.step)) if isinstance(v, slice) else v

    for op, name, target, (args, kwargs), notes in data:
        target = target.found() if isinstance(target, _Named) else given_back(target)
        made[name] = node = graph.create_node(op, target, value(args), value(kwargs), name=name)
        if node.name != name:
            node.name = name
        node.meta.update(notes)
    return graph
