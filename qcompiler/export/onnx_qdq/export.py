"""A QUANTIZED graph to an ONNX file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import fx

from qcompiler.errors import ArtifactWriteError, ConfigError, UnsupportedOpError
from qcompiler.export.dims import DynamicShapes
from qcompiler.export.onnx_qdq.dims import known_sizes
from qcompiler.export.onnx_qdq.ends import inputs_of, results_of, source_of_place
from qcompiler.export.onnx_qdq.extents import Extents, names_of
from qcompiler.export.onnx_qdq.graph import Graph, onnx_type
from qcompiler.export.onnx_qdq.refusals import refuse_all
from qcompiler.export.onnx_qdq.site import Operand
from qcompiler.export.onnx_qdq.values import Lost
from qcompiler.export.onnx_qdq.walk import Walk
from qcompiler.files.atomic import atomic_write
from qcompiler.ops.table import Table
from qcompiler.stages.quantized import Result, steps

OPSETS = (18, 23)  # the first and the last that the forms were tried with
IR_VERSION = 10
LARGEST_FILE = 1_900_000_000  # bytes of tensors beside which a protobuf, which ends at 2 GiB, has room for its graph


def model_of(gm: fx.GraphModule, table: Table, opset: int | None = None, dynamic_shapes: DynamicShapes = None) -> ir.Model:
    """The ONNX model of a QUANTIZED graph. Raises UnsupportedOpError with all calls that have no ONNX form, ConfigError for settings."""
    opset = OPSETS[0] if opset is None else opset
    if not isinstance(opset, int) or not OPSETS[0] <= opset <= OPSETS[1]:
        raise ConfigError(f"opset={opset!r:.20}: files have opset {OPSETS[0]} to {OPSETS[1]}", code="onnx-opset")
    known, graph = known_sizes(gm, table, dynamic_shapes), Graph()
    given = inputs_of(gm, graph, known.of)
    inputs = source_of_place(given)
    extents = Extents(graph, {name: (inputs[source], axis) for name, (source, axis) in known.places.items()})
    walk, results = Walk(graph, extents, known.of, table, dict(given)), []
    for step in steps(gm, table):
        if isinstance(step, Result):
            refuse_all(walk.lost)
            results = _results(step, walk)
        else:
            walk.step(step)
    outputs = _outputs(graph, results)
    made = ir.Graph(list(inputs.values()), outputs, nodes=graph.nodes, initializers=graph.initializers,
                    opset_imports={"": opset}, name=type(gm).__name__)  # fmt: skip
    RemoveUnusedNodesPass()(model := ir.Model(made, ir_version=IR_VERSION, producer_name="qcompiler"))
    model.metadata_props["qcompiler.results"] = json.dumps([path for path, _ in results])
    return model


def _results(step: Result, walk: Walk) -> list[tuple[str, Operand]]:
    try:
        return results_of(step.value, walk.given, walk.extents)
    except Lost as error:
        raise UnsupportedOpError(f"a result has no ONNX form: {error}", code="onnx-form") from error


def _outputs(graph: Graph, results: Sequence[tuple[str, Operand]]) -> list[ir.Value]:
    """A value of its own for each result, whatever else reads what it is a copy of."""
    made = []
    for path, operand in results:
        value = graph.call("Identity", operand.value)
        value.name = graph.result_name(path)
        value.type = ir.TensorType(onnx_type(operand.dtype))
        value.shape = None if operand.shape is None else ir.Shape(list(names_of(operand.shape)))
        made.append(value)
    return made


def write(model: ir.Model, path: str | os.PathLike[str]) -> Path:
    """One file, atomically; where its tensors are more than a protobuf holds they stand beside it, in `<name>.data`.

    Raises ArtifactWriteError.
    """
    target = Path(path)
    if sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None) <= LARGEST_FILE:
        atomic_write(target, [ir.to_proto(model).SerializeToString(deterministic=True)])
        return target
    try:
        ir.save(model, target, external_data=f"{target.name}.data")
    except OSError as error:
        raise ArtifactWriteError(f"{target}: cannot write: {error.strerror or error}") from error
    return target


__all__ = ["model_of", "write"]
