"""export_program: a calibrated or trained module as a program of torch.export."""

from __future__ import annotations

from torch.export import ExportedProgram

from qcompiler.export.dims import DynamicShapes
from qcompiler.export.torch_export.export import program_of
from qcompiler.workflow.exported import quantized_of

NEUTRAL = ("reference", "onnx")  # the second keeps sums of two products within 16 bits, which kernels that run the program may need


def export_program(module: object, dynamic_shapes: DynamicShapes, ops: str) -> ExportedProgram:
    """The program; see api.export_program."""
    graph, table = quantized_of(module, "export_program", "a program of torch.export", NEUTRAL)
    return program_of(graph, table, dynamic_shapes, ops)
