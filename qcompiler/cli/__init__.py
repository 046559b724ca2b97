"""The command line: `qcompiler quantize | inspect | run`."""

from qcompiler.cli.commands import app, main

__all__ = ["app", "main"]
