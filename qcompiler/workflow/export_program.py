"""export_program: a calibrated or trained module as a program of torch.export."""

from __future__ import annotations

from torch import nn
from torch.export import ExportedProgram

from qcompiler.ambient import in_plain_torch
from qcompiler.export.dims import DynamicShapes
from qcompiler.export.torch_export.export import program_of
from qcompiler.inputs.door import door
from qcompiler.workflow.exported import quantized_of

NEUTRAL = ("reference", "onnx")  # the second keeps sums of two products within 16 bits, which kernels that run the program may need


@in_plain_torch
@door
def export_program(module: nn.Module, *, dynamic_shapes: DynamicShapes = None, ops: str = "aten") -> ExportedProgram:
    """The torch.export.ExportedProgram of a calibrated, trained, converted or loaded module.

    `torch.export.save` writes it as a `.pt2` file that needs torch alone. Weights stay int8; int8 ops stand between rounding to codes and
    reading them back. `module`: prepared with `backend="reference"` for the most int8, but any other back end will do; a graph of
    convert_to_reference_fx is taken as it is, and so is what a converted or loaded module computes. `dynamic_shapes`: which sizes of the
    inputs may change, as `{"x": {0: "batch"}}` or `{"x": ("batch", None)}`, with a torch.export.Dim for a name where the size has ends;
    None: all that the model lets change; `{}`: none.
    `ops`: "aten" spells the rounding in plain ops, with the bits of the graph of convert_to_reference_fx; "quantized_decomposed" in the ops
    that Inductor and others look for, where the process has registered them; "xnnpack" in the same ops, with signed codes and rounded
    results, as ExecuTorch's partitioner for XNNPACK takes them. LSTM and GRU compute in floats.
    Warns of a size that torch.export holds fixed. Raises UnsupportedOpError for a call that it cannot take, ConfigError for settings and
    for a converted module, CalibrationError as convert_fx does.
    """
    neutral = ("xnnpack",) if ops == "xnnpack" else NEUTRAL
    graph, table = quantized_of(module, "export_program", "a program of torch.export", neutral)
    return program_of(graph, table, dynamic_shapes, ops)
