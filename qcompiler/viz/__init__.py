"""Drawings of graphs at any stage: `save` to a file, `print` in the terminal, `show` in a notebook."""

from qcompiler.viz.files import FORMATS, save
from qcompiler.viz.notebook import Figure, show
from qcompiler.viz.terminal import print

__all__ = ["FORMATS", "Figure", "print", "save", "show"]
