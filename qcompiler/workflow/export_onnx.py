"""export_onnx: a calibrated, trained, converted or loaded module as an ONNX file."""

from __future__ import annotations

import importlib
import os
import warnings
from pathlib import Path
from types import ModuleType

import torch
from torch import fx, nn

from qcompiler.ambient import in_plain_torch
from qcompiler.errors import ConfigError, QCompilerWarning, callers_level
from qcompiler.executable import Executable
from qcompiler.export.dims import DynamicShapes
from qcompiler.export.onnx_qdq.target import AnyPair
from qcompiler.inputs.door import door
from qcompiler.ops.table import Table
from qcompiler.stages.arguments import Weight
from qcompiler.stages.quantized import Call, steps
from qcompiler.workflow.exported import quantized_of

NEEDS = 'pip install "qcompiler[onnx]"'


@in_plain_torch
@door
def export_onnx(
    module: nn.Module, path: str | os.PathLike[str], *, opset: int | None = None, dynamic_shapes: DynamicShapes = None
) -> Path:  # fmt: skip
    """Writes a calibrated, trained, converted or loaded module as an ONNX file with QuantizeLinear and DequantizeLinear, which ONNX
    Runtime, OpenVINO and others run in int8; returns the path.

    `module`: prepared with `backend="onnx"` for the most int8 and the fewest surprises, but any other back end will do. A graph of
    convert_to_reference_fx is written as it is, and so is what a converted or loaded module computes: its own integers, with a warning
    where they need a CPU with VNNI. `opset`: 18 to 23, default 18. `dynamic_shapes`: which sizes of the inputs may change, as
    `{"x": {0: "batch"}}` or `{"x": ("batch", None, "height", "width")}`; None: all that the model lets change, under the names that
    docs/quantized.md has; `{}`: none. Inputs and results have the names of the model, those in containers by their path. Tensors beyond
    2 GB stand beside the file, in `<name>.data`. Needs the extra `onnx`.
    Raises UnsupportedOpError with every call that has no ONNX form, ConfigError for settings, for a converted module that keeps no
    graph and where the extra is missing, CalibrationError as convert_fx does, ArtifactWriteError.
    """
    exporter = _exporter()
    graph, table = quantized_of(module, "export_onnx", "an ONNX file", ("onnx",))
    model = exporter.model_of(graph, table, opset, dynamic_shapes)
    if isinstance(module, Executable):
        _tell_overflow(graph, table)
    written: Path = exporter.write(model, path)
    return written


def _tell_overflow(graph: fx.GraphModule, table: Table) -> None:
    """Warns where two products of a converted module's weights may overflow 16 bits: other runtimes say nothing of it."""
    weights = {weight.name: safe for step in steps(graph, table) for weight, safe in _weights(step)}
    unsafe = [name for name, safe in weights.items() if not safe]
    if unsafe:
        warnings.warn(
            f"{len(unsafe)} of {len(weights)} weights use codes of which two products may overflow 16 bits: on x86 CPUs without VNNI, ONNX "
            f"Runtime and OpenVINO cut such sums off without a word ({', '.join(unsafe[:3])}{', ...' * (len(unsafe) > 3)}). The file is "
            "right on CPUs with VNNI and on Arm; for one that is right on all, export what prepare_fx returned, or compile "
            "the module with isa=\"avx2\"",
            QCompilerWarning, stacklevel=callers_level(),
        )  # fmt: skip


def _weights(step: object) -> list[tuple[Weight, bool]]:
    """The int8 weight of a call that takes integers, and whether no two of its products overflow."""
    if not isinstance(step, Call) or step.mode is not None or not isinstance(step.weight, Weight) or step.op.macs is None:
        return []
    given = next(iter(step.activations), None)
    if given is None or step.weight.codes.dtype is not torch.int8:
        return []
    safe = given.qparams.quant_max - given.qparams.quant_min <= 127 or bool(AnyPair(step.op.weight_axis).holds(step.weight.codes).all())
    return [(step.weight, safe)]


def _exporter() -> ModuleType:
    try:
        return importlib.import_module("qcompiler.export.onnx_qdq.export")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("onnx", "onnx_ir"):
            raise
        raise ConfigError("export_onnx needs the package onnx-ir", code="onnx-missing", hint=NEEDS) from error
