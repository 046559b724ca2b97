"""Sizes in the ONNX graph: those that may change as values that are read off the inputs, all others as constants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir
import torch

from qcompiler.export.onnx_qdq.graph import Graph
from qcompiler.stages.size_expressions import Floor, Least, Modulo, Name, Size, Sum

Shape = tuple[Size, ...]


class Extents:
    """Makes int64 vectors of sizes. `sources`: of each dimension that may change the input and the axis that it is read off."""

    def __init__(self, graph: Graph, sources: Mapping[str, tuple[ir.Value, int]]) -> None:
        self.graph, self.sources = graph, sources
        self._made: dict[Size, ir.Value] = {}

    def vector(self, sizes: Sequence[Size]) -> ir.Value:
        """The sizes side by side; runs of integers are one constant."""
        if not sizes or all(isinstance(size, int) for size in sizes):
            return self.graph.constant(list(sizes), torch.int64)  # type: ignore[arg-type]
        parts = [self.one(size) for size in sizes]
        return parts[0] if len(parts) == 1 else self.graph.call("Concat", *parts, axis=0)

    def scalar(self, size: Size) -> ir.Value:
        """A size without dimensions."""
        if isinstance(size, int):
            return self.graph.constant(size, torch.int64)
        return self.graph.call("Squeeze", self.one(size), self.graph.constant([0], torch.int64))

    def one(self, size: Size) -> ir.Value:
        """A size as a vector of one element."""
        if isinstance(size, int):
            return self.graph.constant([size], torch.int64)
        if size not in self._made:
            self._made[size] = self._computed(size)
        return self._made[size]

    def _computed(self, size: Size) -> ir.Value:
        if isinstance(size, Name):
            source, axis = self.sources[size.name]
            return self.graph.call("Shape", source, start=axis, end=axis + 1)
        if isinstance(size, Least):
            return self.graph.call("Min", *(self.one(part) for part in size.of))
        if isinstance(size, (Floor, Modulo)):  # sizes are not negative, so Div, which cuts off, rounds down
            return self.graph.call("Div" if isinstance(size, Floor) else "Mod", self.one(size.of), self.one(size.by))
        op, parts = ("Add", size.terms) if isinstance(size, Sum) else ("Mul", size.factors)  # type: ignore[union-attr]
        made = self.one(parts[0])
        for part in parts[1:]:
            made = self.graph.call(op, made, self.one(part))
        return made

    def reshaped(self, value: ir.Value, old: Shape | None, new: Shape) -> ir.Value:
        """The value in another shape, by a constant wherever one can say it."""
        if old == new:
            return value
        kept = dict(enumerate(old or ()))
        plan = [0 if not isinstance(size, int) and kept.get(i) == size else size for i, size in enumerate(new)]
        changing = [i for i, size in enumerate(plan) if not isinstance(size, int)]
        if len(changing) == 1 and 0 not in new:
            plan[changing[0]] = -1
        if 0 in new:  # an empty tensor: 0 means 0
            return self.graph.call("Reshape", value, self.vector(new), allowzero=1)
        return self.graph.call("Reshape", value, self.vector(plan))


def names_of(sizes: Sequence[Size]) -> Iterator[int | str]:
    """As ONNX shows a shape: integers, and text for what changes."""
    return (size if isinstance(size, int) else str(size) for size in sizes)
