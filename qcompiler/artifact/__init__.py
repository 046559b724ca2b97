"""save / load: a compiled module as one file of plain data; loading it runs no code of the file.

The file is a safetensors file: the tensors of the state_dict under the user's names, the program in the metadata. docs/saved-files.md has
the format. The hashes prove integrity, not origin: whoever can write the file can write its hashes. The program names the back end, and
holds what that one wrote; its `load` checks it. The torch back end's operations are names from a fixed registry
(qcompiler/backends/torch/program/registry.py). Submodules left float and functions of the user's are not data: `save`
names them and `load` takes them.
"""

from __future__ import annotations

from qcompiler.artifact.layout import FORMAT
from qcompiler.artifact.read import load
from qcompiler.artifact.write import MissingModulesWarning
from qcompiler.artifact.write import write as save
from qcompiler.files.faults import StandInWarning

__all__ = ["FORMAT", "MissingModulesWarning", "StandInWarning", "load", "save"]
