"""The command line: `qcompiler quantize | tune | inspect | run | bench | viz | compare | bisect | export-c | export-onnx | ...`."""

from qcompiler.cli import debugging, inspect, quantize
from qcompiler.cli.bench import bench
from qcompiler.cli.commands import app, main
from qcompiler.cli.dumps import dumps
from qcompiler.cli.export import export_onnx, export_program
from qcompiler.cli.tune import tune
from qcompiler.cli.viz import viz

ORDER = ("quantize", "tune", "inspect", "run", "bench", "viz", "compare", "bisect",
         "export-c", "export-onnx", "export-program")  # as one comes to need them  # fmt: skip
app.registered_commands.sort(key=lambda command: ORDER.index(command.name or getattr(command.callback, "__name__", "")))

__all__ = ["app", "bench", "debugging", "dumps", "export_onnx", "export_program", "inspect", "main", "quantize", "tune", "viz"]
