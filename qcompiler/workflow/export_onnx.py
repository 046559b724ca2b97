"""export_onnx: a calibrated or trained module as an ONNX file."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

from qcompiler.errors import ConfigError
from qcompiler.export.dims import DynamicShapes
from qcompiler.workflow.exported import quantized_of

NEEDS = 'pip install "qcompiler[onnx]"'


def export_onnx(module: object, path: str | os.PathLike[str], opset: int | None, dynamic_shapes: DynamicShapes) -> Path:
    """The file at `path`; see api.export_onnx."""
    exporter = _exporter()
    graph, table = quantized_of(module, "export_onnx", "an ONNX file", ("onnx",))
    written: Path = exporter.write(exporter.model_of(graph, table, opset, dynamic_shapes), path)
    return written


def _exporter() -> ModuleType:
    try:
        return importlib.import_module("qcompiler.export.onnx_qdq.export")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("onnx", "onnx_ir"):
            raise
        raise ConfigError("export_onnx needs the package onnx-ir", code="onnx-missing", hint=NEEDS) from error
