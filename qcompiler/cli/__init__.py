"""The command line: `qcompiler quantize | inspect | run | viz | compare | bisect | dumps`."""

from qcompiler.cli import debugging
from qcompiler.cli.commands import app, main
from qcompiler.cli.dumps import dumps
from qcompiler.cli.viz import viz

__all__ = ["app", "debugging", "dumps", "main", "viz"]
