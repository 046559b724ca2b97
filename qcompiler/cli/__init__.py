"""The command line: `qcompiler quantize | inspect | run | viz | compare | bisect`."""

from qcompiler.cli import debugging
from qcompiler.cli.commands import app, main
from qcompiler.cli.viz import viz

__all__ = ["app", "debugging", "main", "viz"]
