"""The arguments of a graph or program: what each must be for a call to fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from qcompiler.errors import ConfigError
from qcompiler.ir.form import Form
from qcompiler.ir.types import value_of


@dataclass(frozen=True)
class Argument:
    """One argument of one form: what it must be, and what it is where a call leaves it out."""

    name: str
    form: Form
    optional: bool
    default: Any


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
