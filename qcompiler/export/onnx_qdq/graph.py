"""The ONNX graph while it grows: nodes, initializers and names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx

from qcompiler.export.onnx_qdq.refusals import NoForm
from qcompiler.ir.types import source_of

DTYPES = {
    torch.float32: ir.DataType.FLOAT, torch.float64: ir.DataType.DOUBLE, torch.float16: ir.DataType.FLOAT16,
    torch.uint8: ir.DataType.UINT8, torch.int8: ir.DataType.INT8, torch.int16: ir.DataType.INT16, torch.int32: ir.DataType.INT32,
    torch.int64: ir.DataType.INT64, torch.bool: ir.DataType.BOOL,
}  # fmt: skip
SMALL = 64  # elements of a constant that equal ones share


def onnx_type(dtype: torch.dtype) -> ir.DataType:
    """ONNX's name of a dtype. Raises NoForm for those that it has not."""
    if dtype not in DTYPES:
        raise NoForm(f"ONNX files of ours hold no {dtype}")
    return DTYPES[dtype]


class Graph:
    """Collects nodes. What is emitted carries the name of the fx node that `at` was told last, and the path of its module."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self._names: dict[str, int] = {}
        self._small: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}
        self._parameters: dict[str, tuple[Tensor, ir.Value]] = {}
        self._node: fx.Node | None = None
        self._results: set[str] = set()

    def at(self, node: fx.Node) -> None:
        self._node = node

    def name(self, wanted: str) -> str:
        """The name, or the name with a number behind it where it is taken."""
        count = self._names[wanted] = self._names.get(wanted, -1) + 1
        return wanted if count == 0 else self.name(f"{wanted}.{count}")

    def result_name(self, wanted: str) -> str:
        """The name, which a value that is computed gives up for a result; an input keeps its own."""
        held = next((value for node in self.nodes for value in node.outputs if value.name == wanted), None)
        if held is None or wanted in self._results:
            return self.name(wanted)
        held.name = self.name(wanted)
        self._results.add(wanted)
        return wanted

    def input(self, name: str, dtype: torch.dtype, shape: Sequence[int | str]) -> ir.Value:
        return ir.Value(name=self.name(name), type=ir.TensorType(onnx_type(dtype)), shape=ir.Shape(shape))

    def add(self, op: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: ir.SupportedAttrTypes) -> list[ir.Value]:
        """A node; its results, named after the fx node and the op."""
        base = self._node.name if self._node is not None else "graph"
        given = {key: value for key, value in attributes.items() if value is not None}
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        node = ir.node(op, inputs, given, num_outputs=outputs, name=self.name(f"{base}/{op}"))
        if self._node is not None and source_of(self._node).module_path:
            node.metadata_props["module"] = source_of(self._node).module_path
        for result in node.outputs:
            result.name = self.name(f"{base}/{op}_out")
        self.nodes.append(node)
        return list(node.outputs)

    def call(self, op: str, *inputs: ir.Value | None, **attributes: ir.SupportedAttrTypes) -> ir.Value:
        """A node with one result."""
        return self.add(op, *inputs, **attributes)[0]

    def constant(self, values: Tensor | Sequence[int] | Sequence[float] | float, dtype: torch.dtype | None = None) -> ir.Value:
        """A tensor that is part of the graph; equal small ones are one."""
        tensor = torch.as_tensor(values, dtype=dtype)
        array = tensor.detach().cpu().contiguous().numpy()
        key = (str(array.dtype), array.tobytes(), array.shape) if array.size <= SMALL else None
        if key is not None and key in self._small:
            return self._small[key]
        made = self._initializer(self.name("constant"), array, tensor.dtype)
        if key is not None:
            self._small[key] = made
        return made

    def parameter(self, name: str, tensor: Tensor) -> ir.Value:
        """A tensor of the user's model, under its name; what several ops read is one."""
        held = self._parameters.get(name)
        if held is None or held[0].dtype is not tensor.dtype or not torch.equal(held[0], tensor):
            made = self._initializer(self.name(name), tensor.detach().cpu().contiguous().numpy(), tensor.dtype)
            held = self._parameters[name] = (tensor, made)
        return held[1]

    def _initializer(self, name: str, array: np.ndarray, dtype: torch.dtype) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(onnx_type(dtype)), shape=ir.Shape(array.shape))
        value.const_value = ir.Tensor(array, name=name)
        self.initializers.append(value)
        return value

    def cast(self, value: ir.Value, dtype: torch.dtype) -> ir.Value:
        return self.call("Cast", value, to=onnx_type(dtype))
