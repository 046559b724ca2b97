"""The command line: `qcompiler quantize | inspect | run | viz | dumps`."""

from qcompiler.cli.commands import app, main
from qcompiler.cli.dumps import dumps
from qcompiler.cli.viz import viz

__all__ = ["app", "dumps", "main", "viz"]
