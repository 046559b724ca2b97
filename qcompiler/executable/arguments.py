"""The arguments of a graph or program: what each must be for a call to fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from qcompiler.errors import ConfigError
from qcompiler.ir.form import Form
from qcompiler.ir.types import value_of

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Argument:
    """One argument of one form: what it must be, and what it is where a call leaves it out. `is_index`: its integers may be of any type."""

    name: str
    form: Form
    optional: bool
    default: Any
    is_index: bool = False

    def form_for(self, value: object) -> Form:
        """What a value must be."""
        any_integer = self.is_index and isinstance(value, torch.Tensor) and value.dtype in INTEGERS
        return replace(self.form, name=str(value.dtype).removeprefix("torch.")) if any_integer else self.form  # type: ignore[attr-defined]


def arguments_of_graph(graph: fx.Graph) -> tuple[Argument, ...]:
    """The arguments of a graph, in the order of the forward."""
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    return tuple(Argument(str(n.target), _of_node(n), bool(n.args), n.args[0] if n.args else None) for n in nodes)


def _of_node(node: fx.Node) -> Form:
    value = value_of(node)
    return form_of(value.form, str(value.dtype).removeprefix("torch."), value.shape)


def form_of(form: Form | None, dtype: str | None, shape: tuple[int, ...] | None) -> Form:
    """The Form of a tensor of that dtype and shape, else `form`."""
    if shape is not None:
        return Form("tensor", name=str(dtype), shape=tuple(map(int, shape)))
    if form is None:
        raise ConfigError("a form of the call does not say what its arguments are made of", code="call-forms")
    return form
