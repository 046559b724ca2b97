"""A QUANTIZED graph as ONNX nodes, step by step. What has no form is noted, and what reads it is passed over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir
import torch
from torch import fx

from qcompiler.export.onnx_qdq.float_calls import NUMBERS, bound
from qcompiler.export.onnx_qdq.forms import FORMS
from qcompiler.export.onnx_qdq.forms.functions import clipped
from qcompiler.export.onnx_qdq.records import fields_of
from qcompiler.export.onnx_qdq.refusals import NoForm
from qcompiler.export.onnx_qdq.site import Arg, Codes, Form, Known, Made, Operand, Site, quantized
from qcompiler.export.onnx_qdq.values import Lost, Values
from qcompiler.export.ranges import code_limits
from qcompiler.ir.types import QParams, value_of
from qcompiler.ops.arguments import asks_size
from qcompiler.ops.table import Table
from qcompiler.stages.arguments import Bounds, Integers, bounds_of
from qcompiler.stages.quantized import Call, Dequantize, Float, Load, Quantize, Step, defaults_of
from qcompiler.stages.size_expressions import is_size
from qcompiler.trace.guards import is_guard


@dataclass
class Walk(Values):
    """`lost`: the nodes that have no form, with the reason. `without`: those, and all that reads them."""

    lost: list[tuple[fx.Node, str]] = field(default_factory=list)
    without: set[fx.Node] = field(default_factory=set)

    def step(self, step: Step) -> None:
        """Emits what a step computes."""
        self.graph.at(step.node)
        try:
            if isinstance(step, Quantize):
                self._quantize(step)
            elif isinstance(step, Dequantize):
                self.values[step.node] = self.floats_of(step.codes)
            elif isinstance(step, Load):
                self.values[step.node] = self.constant(step.constant)
            elif isinstance(step, Call):
                self._call(step)
            elif isinstance(step, Float):
                self._float(step.node)
        except NoForm as refused:
            self._lose(step.node, str(refused))
            self.without.add(getattr(step, "result", None) or step.node)
        except Lost as missing:
            if missing.node not in self.without:
                self._lose(missing.node, "what it gives is known to nobody before it runs")
            self.without.update((step.node, getattr(step, "result", None) or step.node))

    def _lose(self, node: fx.Node, reason: str) -> None:
        self.lost.append((node, f"{_called(node)}: {reason}"))
        self.without.add(node)

    def _quantize(self, step: Quantize) -> None:
        value = self.given(step.value)
        if not isinstance(value, Operand):
            raise NoForm("what it rounds is no tensor")
        self.codes[step.node] = self._rounded(step.node, value.value, step.qparams, (None, None))

    def _rounded(self, node: fx.Node, value: ir.Value, qparams: QParams, bounds: Bounds) -> ir.Value:
        """Codes of floats, cut where their dtype's own ends do not cut them."""
        codes = quantized(self.graph, value, qparams)
        ends = code_limits(qparams, bounds)
        if ends is not None:
            codes = self.graph.call("Clip", codes, *(self.graph.constant(end, qparams.dtype) for end in ends))
        codes.name = self.graph.name(node.name)
        return codes

    def _call(self, step: Call) -> None:
        if self._picks(step):
            return
        names = [param.name for param in step.op.params]
        arguments: dict[str, Arg] = {name: self.argument(given) for name, given in zip(names, step.inputs)}
        arguments |= {name: self.arg(value) for name, value in step.attributes.items()}
        site = self._site(step.node, arguments, step.output)
        made = self._form(step.op.name)(site)
        if step.output is None or step.result is None:
            self._keep(step.node, self._clipped(site, made, step.bounds))
        else:
            self.codes[step.result] = self._rounded_each(step.result, made, step)
            if len(step.node.users) > 1:  # who reads it beside the rounding reads it as it was
                self._keep(step.node, self._clipped(site, made, step.bounds))

    def _picks(self, step: Call) -> bool:
        """One of several int8 values: its codes as they are."""
        given = step.inputs[0] if step.inputs else None
        if step.op.name != "getitem" or not isinstance(given, Integers) or step.result is None:
            return False
        parts = self.codes_of(given.codes)
        if isinstance(parts, list):
            self.codes[step.result] = parts[step.attributes["index"]]  # type: ignore[call-overload]
        return isinstance(parts, list)

    def _rounded_each(self, node: fx.Node, made: Made, step: Call) -> Codes:
        if isinstance(made, list):
            return [self._rounded_each(node, part, step) for part in made]
        assert step.output is not None and isinstance(made, ir.Value)
        return self._rounded(node, made, step.output, step.bounds)

    def _float(self, node: fx.Node) -> None:
        if is_guard(node) or self._is_number(node) or self._is_record(node):
            return
        name, given = self._bound(node)
        bounds = bounds_of(given) if given.get("bounds") is not None else (None, None)
        site = self._site(node, {key: self.arg(value) for key, value in given.items() if key != "bounds"}, None)
        self._keep(node, self._clipped(site, self._form(name)(site), bounds))

    def _bound(self, node: fx.Node) -> tuple[str, dict[str, object]]:
        """Name of the form and arguments of a float call."""
        if self.table.of(node) is not None:
            return bound_row(node, self.table)
        if node.op == "call_module":
            raise NoForm("the compiler could not look into this module")
        found = bound(node)
        if found is None:
            raise NoForm("no form of this call is known")
        return found

    def _is_record(self, node: fx.Node) -> bool:
        """Whether a node puts values together, or reads one of those by its name."""
        fields = fields_of(node)
        if fields is not None:
            self.values[node] = self.arg(fields)
        elif node.target is getattr:
            held = self.given(node.args[0])  # type: ignore[arg-type]
            if not isinstance(held, dict) or node.args[1] not in held:
                return False
            self.values[node] = held[node.args[1]]  # type: ignore[index]
        return node in self.values

    def _is_number(self, node: fx.Node) -> bool:
        """Whether a node gives a number, or several: those of sizes are read off the inputs where they are used."""
        sized = self.sizes.get(node)
        if value_of(node).shape is None and (is_size(sized) or (isinstance(sized, list) and sized and all(map(is_size, sized)))):
            self.values[node] = sized  # type: ignore[assignment]
            return True
        if asks_size(node):
            return True
        if node.target in NUMBERS and value_of(node).shape is None:
            args = [self.arg(arg) for arg in node.args]
            if all(isinstance(arg, (int, float)) for arg in args):
                self.values[node] = NUMBERS[node.target](*args)  # type: ignore[assignment, index]
                return True
        return False

    @staticmethod
    def _form(name: str) -> Form:
        if name not in FORMS:
            raise NoForm("no form of this op is known")
        return FORMS[name]

    def _site(self, node: fx.Node, arguments: Mapping[str, Arg], output: QParams | None) -> Site:
        dtype = value_of(node).dtype
        if dtype is None:
            dtype = next((arg.dtype for arg in arguments.values() if isinstance(arg, Operand)), torch.float32)
        return Site(self.graph, self.extents, node, arguments, self.shape(node), dtype, output)

    def _clipped(self, site: Site, made: Made, bounds: Bounds) -> Made:
        return made if bounds == (None, None) or not isinstance(made, ir.Value) else clipped(site, made, *bounds)

    def _keep(self, node: fx.Node, made: Made) -> None:
        if isinstance(made, ir.Value) and made.producer() is not None and not made.is_graph_output():
            self._rename(made, node.name)
        self.values[node] = self._operand(made, self.shape(node), value_of(node).dtype or torch.float32)

    def _rename(self, value: ir.Value, name: str) -> None:
        if value.name is not None and "/" in value.name:
            value.name = self.graph.name(name)

    def _operand(self, made: Made, shape: Known, dtype: torch.dtype) -> Arg:
        if isinstance(made, list):
            shapes = shape if isinstance(shape, list) and len(shape) == len(made) else [None] * len(made)
            return [self._operand(part, own, dtype) for part, own in zip(made, shapes)]
        if isinstance(made, dict):
            return {key: self._operand(part, None, dtype) for key, part in made.items()}
        if not isinstance(made, ir.Value):
            return made
        return Operand(made, shape if isinstance(shape, tuple) else None, dtype)


def bound_row(node: fx.Node, table: Table) -> tuple[str, dict[str, object]]:
    """Name and arguments of a canonical call, the defaults of its row among them."""
    row = table.of(node)
    assert row is not None
    given = dict(zip((param.name for param in row.params), node.args))
    missing = {param.name: None for param in row.params[len(node.args) :]}
    return row.name, {**given, **missing, **defaults_of(row), **node.kwargs}


def _called(node: fx.Node) -> str:
    """What a node calls, as the user wrote it."""
    if isinstance(node.target, str):
        return node.target
    return getattr(node.target, "__name__", repr(node.target))
