"""One call as its ONNX form sees it: its arguments as values, their shapes, and what to emit with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir
import torch
from torch import fx

from qcompiler.export.onnx_qdq.extents import Extents, Shape
from qcompiler.export.onnx_qdq.graph import Graph
from qcompiler.export.onnx_qdq.refusals import NoForm
from qcompiler.ir.types import QParams
from qcompiler.stages.arguments import Weight
from qcompiler.stages.size_expressions import Size, is_size


@dataclass(frozen=True)
class Operand:
    """A tensor: its value, its sizes (None: nobody can tell them), its dtype; of integers that were made floats the qparams too.

    `at_run_time`: whether the op that takes it rounds it to the steps of its own range.
    """

    value: ir.Value
    shape: Shape | None
    dtype: torch.dtype
    qparams: QParams | None = None
    at_run_time: bool = False

    @property
    def sizes(self) -> Shape:
        """Its sizes. Raises NoForm where nobody can tell them."""
        if self.shape is None:
            raise NoForm("its form depends on sizes that nobody can tell before it runs")
        return self.shape

    @property
    def rank(self) -> int:
        return len(self.sizes)

    def axis(self, dim: object) -> int:
        """A dimension counted from the front."""
        if not isinstance(dim, int):
            raise NoForm(f"the dimension {dim!r:.40} is no number")
        return dim % max(self.rank, 1)

    def fixed(self, *axes: int) -> list[int]:
        """Its sizes along the axes, where they do not change. Raises NoForm where one does."""
        found = [self.sizes[axis] for axis in axes]
        if not all(isinstance(size, int) for size in found):
            raise NoForm(f"its form needs fixed sizes, and {', '.join(map(str, found))} change: dynamic_shapes={{}} fixes all")
        return found  # type: ignore[return-value]


Arg: TypeAlias = "Operand | Weight | Size | float | str | slice | list[Arg] | dict[str, Arg] | None"
Codes: TypeAlias = "ir.Value | list[Codes]"
Known: TypeAlias = "Shape | list[Known] | None"
Made: TypeAlias = "ir.Value | Operand | list[Made] | dict[str, Made]"
Form: TypeAlias = "Callable[[Site], Made]"


@dataclass(frozen=True)
class Site:
    """`arguments`: all by their canonical names, those left out with their defaults. `results`: the shape of what it gives."""

    graph: Graph
    extents: Extents
    node: fx.Node
    arguments: Mapping[str, Arg]
    result: Known
    dtype: torch.dtype
    output: QParams | None = None

    def get(self, name: str) -> Arg:
        return self.arguments.get(name)

    @property
    def x(self) -> Operand:
        """The first argument, a tensor."""
        return self.tensor(next(iter(self.arguments)))

    @property
    def shape(self) -> Shape:
        """Of the result. Raises NoForm where nobody can tell it."""
        if not isinstance(self.result, tuple):
            raise NoForm("the sizes of its result are known to nobody before it runs")
        return self.result

    def tensor(self, name: str) -> Operand:
        """An argument that must be a tensor. Raises NoForm."""
        found = self.get(name)
        if not isinstance(found, Operand):
            raise NoForm(f"its argument {name} is no tensor")
        return found

    def optional(self, name: str) -> Operand | None:
        return None if self.get(name) is None else self.tensor(name)

    def number(self, name: str) -> float:
        """An argument that is a number, fixed when the file is written. Raises NoForm."""
        found = self.get(name)
        if not isinstance(found, (int, float)):
            raise NoForm(f"its argument {name} is no fixed number")
        return found

    def integers(self, name: str) -> list[int]:
        """An argument of one or several fixed integers. Raises NoForm."""
        return plain_integers(self.get(name), name)

    def text(self, name: str) -> str:
        return str(self.get(name))

    def flag(self, name: str) -> bool:
        return bool(self.get(name))

    def call(self, op: str, *inputs: ir.Value | None, **attributes: ir.SupportedAttrTypes) -> ir.Value:
        return self.graph.call(op, *inputs, **attributes)

    def constant(self, values: Sequence[int] | float | torch.Tensor, dtype: torch.dtype | None = None) -> ir.Value:
        return self.graph.constant(values, dtype)

    def ints(self, *values: int) -> ir.Value:
        return self.graph.constant(list(values), torch.int64)

    def operand(self, arg: Arg, dtype: torch.dtype) -> ir.Value:
        """A tensor or a number as a value of that dtype."""
        if isinstance(arg, Operand):
            return arg.value if arg.dtype is dtype else self.graph.cast(arg.value, dtype)
        if isinstance(arg, (bool, int, float)):
            return self.graph.constant(arg, dtype)
        if is_size(arg):
            made = self.extents.scalar(arg)
            return made if dtype is torch.int64 else self.graph.cast(made, dtype)
        raise NoForm(f"its argument {arg!r:.60} is neither a tensor nor a number")

    def again(self, value: ir.Value, qparams: QParams | None) -> ir.Value:
        """A value that holds numbers of those qparams, rounded once more, which changes nothing: so runtimes see that a copy is one."""
        return value if qparams is None else dequantized(self.graph, quantized(self.graph, value, qparams), qparams)


def plain_integers(found: Arg, name: str) -> list[int]:
    items = found if isinstance(found, list) else [found]
    if not all(isinstance(item, int) for item in items):
        raise NoForm(f"its argument {name} is not made of fixed integers")
    return items  # type: ignore[return-value]


def _scale_and_zero(graph: Graph, p: QParams) -> tuple[ir.Value, ir.Value]:
    return graph.constant(p.scale, torch.float32), graph.constant(p.zero_point, p.dtype)  # type: ignore[arg-type]


def quantized(graph: Graph, value: ir.Value, p: QParams) -> ir.Value:
    """Floats as codes."""
    return graph.call("QuantizeLinear", value, *_scale_and_zero(graph, p))


def dequantized(graph: Graph, codes: ir.Value, p: QParams) -> ir.Value:
    """Codes as floats."""
    return graph.call("DequantizeLinear", codes, *_scale_and_zero(graph, p))
