"""What the nodes of a graph give, as values of the ONNX graph: floats, integers, constants, numbers of sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir
import torch
from torch import Tensor, fx

from qcompiler.export.onnx_qdq.extents import Extents
from qcompiler.export.onnx_qdq.graph import Graph
from qcompiler.export.onnx_qdq.refusals import NoForm
from qcompiler.export.onnx_qdq.site import Arg, Codes, Known, Operand, dequantized
from qcompiler.ir.types import QParams
from qcompiler.ops.table import Table
from qcompiler.stages.arguments import Argument, Constant, HalfWeight, Integers, Rounded, Weight, held
from qcompiler.stages.sizes import Sized

PLAIN = (bool, int, float, str, type(None), type(Ellipsis))


class Lost(Exception):
    """A value is not there: what makes it has no form. `node`: what makes it."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__(f"%{node.name} is not known")
        self.node = node


@dataclass
class Values:
    """`values`: of each node what it gives, floats and integers of the model's; `codes`: the integers of int8 values."""

    graph: Graph
    extents: Extents
    sizes: Mapping[fx.Node, Sized]
    table: Table
    values: dict[fx.Node, Arg] = field(default_factory=dict)
    codes: dict[fx.Node, Codes] = field(default_factory=dict)
    _floats: dict[int, ir.Value] = field(default_factory=dict)

    def shape(self, node: fx.Node) -> Known:
        """Of a tensor its sizes, of several a list of these; None where nobody knows them."""
        return _known(self.sizes.get(node))

    def codes_of(self, node: fx.Node) -> Codes:
        if node not in self.codes:
            raise Lost(node)
        return self.codes[node]

    def floats_of(self, given: Integers) -> Arg:
        """The floats that integers stand for."""
        return self._dequantized(self.codes_of(given.codes), self.shape(given.codes), given.qparams)

    def _dequantized(self, codes: Codes, shape: Known, qparams: QParams) -> Arg:
        if isinstance(codes, list):
            shapes = shape if isinstance(shape, list) else [None] * len(codes)
            return [self._dequantized(part, own, qparams) for part, own in zip(codes, shapes)]
        if id(codes) not in self._floats:
            self._floats[id(codes)] = dequantized(self.graph, codes, qparams)
        return Operand(self._floats[id(codes)], shape if isinstance(shape, tuple) else None, torch.float32, qparams)

    def constant(self, given: Constant) -> Operand:
        value = self.graph.parameter(given.name, given.values)
        return Operand(value, tuple(given.values.shape), given.values.dtype)

    def argument(self, given: Argument) -> Arg:
        if isinstance(given, tuple):
            return [self.argument(part) for part in given]
        if isinstance(given, Integers):
            return self.floats_of(given)
        if isinstance(given, Constant):
            return self.constant(given)
        if isinstance(given, HalfWeight):
            half = self.graph.parameter(given.name, given.values)
            return Operand(self.graph.cast(half, torch.float32), tuple(given.values.shape), torch.float32)
        if isinstance(given, Rounded):
            rounded = self.argument(given.value)
            return replace(rounded, at_run_time=True) if isinstance(rounded, Operand) else rounded
        return given if isinstance(given, Weight) else self.arg(given)

    def arg(self, arg: object) -> Arg:
        """An argument as fx holds it."""
        if isinstance(arg, fx.Node):
            return self.given(arg)
        if isinstance(arg, (list, tuple)):
            return [self.arg(part) for part in arg]
        if isinstance(arg, dict):
            return {key: self.arg(part) for key, part in arg.items()}
        if isinstance(arg, slice):
            return slice(self.arg(arg.start), self.arg(arg.stop), self.arg(arg.step))
        if isinstance(arg, Tensor):
            return Operand(self.graph.constant(arg), tuple(arg.shape), arg.dtype)
        if isinstance(arg, PLAIN):
            return arg  # type: ignore[return-value]
        raise NoForm(f"its argument {arg!r:.60} has no form")

    def given(self, node: fx.Node) -> Arg:
        """What a node gives. Raises Lost where it, or what it reads, has no form."""
        if node not in self.values and node.op == "get_attr" and node.graph.owning_module is not None:
            self.values[node] = self.constant(Constant(*held(node.graph.owning_module, node)))
        if node not in self.values:
            raise Lost(node)
        return self.values[node]


def _known(sized: object) -> Known:
    if isinstance(sized, list):
        return [_known(part) for part in sized]
    return tuple(sized) if isinstance(sized, tuple) else None
