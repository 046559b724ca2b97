"""What goes in and out of the file: arguments and results under the names that the model has for them, containers taken apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir
import torch
from torch import fx

from qcompiler.errors import ConfigError
from qcompiler.executable.arguments import arguments_of_graph
from qcompiler.export.onnx_qdq.extents import Extents, names_of
from qcompiler.export.onnx_qdq.graph import Graph
from qcompiler.export.onnx_qdq.site import Arg, Operand
from qcompiler.ir.form import Form
from qcompiler.stages.size_expressions import is_size
from qcompiler.stages.size_runs import parts_of_form
from qcompiler.stages.sizes import Shape, Sized


def inputs_of(gm: fx.GraphModule, graph: Graph, sizes: Mapping[fx.Node, Sized]) -> dict[fx.Node, Arg]:
    """What each argument is: tensors become inputs of the file, None, flags and texts are as in the example.

    Raises ConfigError for a number that a call may change: the file would hold the example's.
    """
    nodes = [node for node in gm.graph.nodes if node.op == "placeholder"]
    made: dict[fx.Node, Arg] = {}
    for node, argument in zip(nodes, arguments_of_graph(gm.graph), strict=True):
        made[node] = _input(argument.name, argument.form, sizes[node], graph)
    return made


def _input(name: str, form: Form, sized: Sized, graph: Graph) -> Arg:
    if form.kind == "tensor":
        shape = tuple(sized) if isinstance(sized, Shape) else form.shape
        dtype = getattr(torch, form.name)
        return Operand(graph.input(name, dtype, list(names_of(shape))), shape, dtype)
    if form.kind == "number" and form.name != "fixed":
        raise ConfigError(f"the argument {name} is a number, and an ONNX file would hold the example's for good", code="onnx-number",
                          hint=f"prepare with concrete_args={{{name!r}: {form.value!r}}}, or let the model take a tensor")  # fmt: skip
    if form.kind in ("list", "tuple", "dict"):
        own = sized if isinstance(sized, list) else [None] * len(form.parts)
        parts = [_input(path, part, size, graph) for (path, part), size in zip(parts_of_form(name, form), own)]
        return dict(zip(form.keys, parts)) if form.kind == "dict" else parts
    if form.parts:
        raise ConfigError(f"the argument {name} is a {form.name}, which an ONNX file cannot take", code="onnx-argument",
                          hint="let the model take tensors, lists, tuples or dicts")  # fmt: skip
    value: Arg = form.value
    return value


def tensors_among(arg: Arg) -> Iterator[Operand]:
    """The tensors in nested containers, in order."""
    if isinstance(arg, Operand):
        yield arg
    elif isinstance(arg, (list, dict)):
        for part in arg.values() if isinstance(arg, dict) else arg:
            yield from tensors_among(part)


def source_of_place(values: Mapping[fx.Node, Arg]) -> dict[str, ir.Value]:
    """Inputs by the name that sizes know them under."""
    return {str(tensor.value.name): tensor.value for arg in values.values() for tensor in tensors_among(arg)}


def results_of(value: object, given: Callable[[fx.Node], Arg], extents: Extents) -> list[tuple[str, Operand]]:
    """Each tensor that the forward returns, under its path: `logits`, `boxes.0`; `output` where it is the only one."""
    named = list(_named("", _resolved(value, given), extents))
    return [(path or "output", operand) for path, operand in named]


def _resolved(value: object, given: Callable[[fx.Node], Arg]) -> object:
    if isinstance(value, fx.Node):
        return given(value)
    if isinstance(value, dict):
        return {key: _resolved(part, given) for key, part in value.items()}
    return [_resolved(part, given) for part in value] if isinstance(value, (list, tuple)) else value


def _named(path: str, value: object, extents: Extents) -> Iterator[tuple[str, Operand]]:
    if isinstance(value, Operand):
        yield path, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _named(f"{path}.{key}" if path else str(key), part, extents)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _named(f"{path}.{index}" if path else f"output.{index}", part, extents)
    elif is_size(value):
        yield path, Operand(extents.scalar(value), (), torch.int64)
    elif isinstance(value, float):
        yield path, Operand(extents.graph.constant(value, torch.float32), (), torch.float32)
