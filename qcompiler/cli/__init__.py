"""The command line: `qcompiler quantize | inspect | run | viz`."""

from qcompiler.cli.commands import app, main
from qcompiler.cli.viz import viz

__all__ = ["app", "main", "viz"]
