"""export_onnx: a calibrated, trained, converted or loaded module as an ONNX file."""

from __future__ import annotations

import importlib
import os
import warnings
from pathlib import Path
from types import ModuleType

import torch
from torch import fx

from qcompiler.errors import ConfigError, QCompilerWarning
from qcompiler.executable import Executable
from qcompiler.export.dims import DynamicShapes
from qcompiler.export.onnx_qdq.target import AnyPair
from qcompiler.ops.table import Table
from qcompiler.stages.arguments import Weight
from qcompiler.stages.quantized import Call, steps
from qcompiler.workflow.exported import quantized_of

NEEDS = 'pip install "qcompiler[onnx]"'
CALLER = 5  # calls between the warning and the line of the user's that called export_onnx


def export_onnx(module: object, path: str | os.PathLike[str], opset: int | None, dynamic_shapes: DynamicShapes) -> Path:
    """The file at `path`; see api.export_onnx."""
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
            QCompilerWarning, stacklevel=CALLER,
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
