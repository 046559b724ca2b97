"""Runs a graph on shapes alone: every node's result at given sizes of the inputs, without data and without memory for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from qcompiler.ambient import copied_with_data
from qcompiler.fake_tensors import ShapesAlone, in_silence
from qcompiler.ir.form import Form
from qcompiler.ir.types import value_of
from qcompiler.ops import reference
from qcompiler.ops.table import Table
from qcompiler.stages.graph_rules import watches

KEEPS_SHAPE = (reference.quantize, reference.dequantize, reference.dynamic_quantize_dequantize)


@dataclass(frozen=True)
class Unknown:
    """A result whose size nobody can tell, and why."""

    reason: str


class Dims(tuple[int, ...]):
    """The shape of a tensor."""


Found: TypeAlias = "Dims | int | list[Found] | Unknown | None"  # None: neither a tensor nor a whole number
Place: TypeAlias = tuple[str, int]  # an input's name (with the keys that lead to a tensor in it) and an axis


class NotThisSize(Exception):
    """A node does not take these sizes."""


class Runner:
    """Runs one graph as often as one likes. `table` tells which calls round at run time, which sizes do not depend on."""

    def __init__(self, gm: fx.GraphModule, table: Table) -> None:
        self.gm, self.table = gm, table
        self.mode = ShapesAlone()
        self.held: dict[str, object] = {}
        self.inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]

    def places(self) -> Iterator[tuple[Place, int, str, int]]:
        """Each axis of each tensor among the inputs: its place, its size in the example, the tensor's dtype and rank."""
        for node in self.inputs:
            for name, shape, dtype in _tensors(str(node.target), form_of(node)):
                yield from (((name, axis), size, dtype, len(shape)) for axis, size in enumerate(shape))

    def run(self, sizes: Mapping[Place, int], bears: Callable[[fx.Node], bool] = lambda node: True) -> dict[fx.Node, Found]:
        """What each node gives. A node that cannot run is Unknown where `bears` says so; NotThisSize where it does not."""
        values: dict[fx.Node, object] = {}
        with in_silence(), self.mode, torch.no_grad():
            for node in self.gm.graph.nodes:
                if node.op == "output":
                    continue
                try:
                    values[node] = self._value(node, values, sizes)
                except Exception as error:  # whatever an op says of shapes, or of values that are not there
                    reason = error.args[0] if isinstance(error, _Lost) else f"{type(error).__name__}: {error!s:.200}"
                    if not bears(node):
                        raise NotThisSize(f"%{node.name}: {reason}") from error
                    values[node] = Unknown(reason)
        return {node: _found(value) for node, value in values.items()}

    def _value(self, node: fx.Node, values: Mapping[fx.Node, object], sizes: Mapping[Place, int]) -> object:
        if node.op == "placeholder":
            return _made(str(node.target), form_of(node), sizes)
        if watches(node):
            return _known(node.args[0], values)  # type: ignore[arg-type]
        if node.op in ("get_attr", "call_module"):
            held = self._held(node)
            if node.op == "get_attr":
                return held
        if node.target is reference.choose:
            return _chosen(node, values)
        args: Any = fx.node.map_arg(node.args, lambda n: _known(n, values))  # type: ignore[arg-type, return-value]
        kwargs: Any = dict(fx.node.map_arg(node.kwargs, lambda n: _known(n, values)))  # type: ignore[arg-type, return-value, call-overload]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_module":
            return held(*args, **kwargs)  # type: ignore[operator]
        if node.target in KEEPS_SHAPE:
            return args[0]
        if node.target is reference.dequantize_weight:
            return torch.empty(args[0].shape)
        row = self.table.of(node)
        if row is not None and row.rounds_inside:
            kwargs.pop("activation_range", None)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _held(self, node: fx.Node) -> object:
        """A parameter, or a copy of a module that is called: what it keeps between calls stays as it is."""
        path = str(node.target)
        if path not in self.held:
            value: object = self.gm
            for part in path.split("."):
                value = getattr(value, part)
            if isinstance(value, Tensor):
                value = self.mode.from_tensor(value.detach(), static_shapes=True)
            self.held[path] = copied_with_data(value) if isinstance(value, nn.Module) else value
        return self.held[path]


class _Lost(Exception):
    """An argument is not known."""


def _known(node: fx.Node, values: Mapping[fx.Node, object]) -> object:
    value = values[node]
    if isinstance(value, Unknown):
        raise _Lost(value.reason if value.reason.startswith("%") else f"%{node.name}: {value.reason}")
    return value


def _chosen(node: fx.Node, values: Mapping[fx.Node, object]) -> object:
    """Of two values of one shape either will do."""
    yes, no = (_known(arg, values) if isinstance(arg, fx.Node) else arg for arg in node.args[1:3])
    if _found(yes) != _found(no):
        raise _Lost("data decides between two shapes")
    return yes


def form_of(node: fx.Node) -> Form:
    value = value_of(node)
    if value.form is not None:
        return value.form
    if value.shape is None:
        return Form("object", node.args[0] if node.args else None)
    return Form("tensor", name=str(value.dtype).removeprefix("torch."), shape=value.shape)


def parts_of_form(name: str, form: Form) -> Iterator[tuple[str, Form]]:
    keys = form.keys or range(len(form.parts))
    return ((f"{name}.{key}", part) for key, part in zip(keys, form.parts, strict=True))


def _tensors(name: str, form: Form) -> Iterator[tuple[str, tuple[int, ...], str]]:
    if form.kind == "tensor":
        yield name, form.shape, form.name
    for path, part in parts_of_form(name, form):
        yield from _tensors(path, part)


def _made(name: str, form: Form, sizes: Mapping[Place, int]) -> object:
    """An input of the form, with the sizes that are given and the example's for the rest."""
    if form.kind == "tensor":
        shape = [sizes.get((name, axis), size) for axis, size in enumerate(form.shape)]
        return torch.empty(shape, dtype=getattr(torch, form.name))
    parts = [_made(path, part, sizes) for path, part in parts_of_form(name, form)]
    if form.kind == "dict":
        return dict(zip(form.keys, parts, strict=True))
    if form.kind == "named":
        raise _Lost(f"a {form.name} is a class of the caller's")
    return form.value if form.kind not in ("list", "tuple") else parts if form.kind == "list" else tuple(parts)


def _found(value: object) -> Found:
    if isinstance(value, Tensor):
        return Dims(map(int, value.shape))
    if isinstance(value, torch.Size):
        return [int(size) for size in value]
    if isinstance(value, (list, tuple, dict)):
        return [_found(part) for part in (value.values() if isinstance(value, dict) else value)]
    return value if isinstance(value, (Unknown, int)) and not isinstance(value, bool) else None
