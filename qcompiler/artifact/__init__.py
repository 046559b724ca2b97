"""save / load: a compiled module as one file of plain data; loading it runs no code of the file.

    magic (8)  major, minor (2 x u16)  reserved (u32, 0)  header length (u64)  sha256 of the header (32)
    header: canonical JSON                    padded with zeros to a multiple of 64
    tensors, raw, little endian, C order      each at a multiple of 64 from the end of the header, in the header's order
    sha256 of everything before (32)

The hashes prove integrity, not origin: whoever can write the file can write its hashes. The header names the back end (without a
name: torch), and holds what that one wrote; its `load` checks it. The torch back end's operations are names from a fixed registry
(qcompiler/backends/torch/program/registry.py). Submodules left float and functions of the user's are not data: `save`
names them and `load` takes them.
"""

from __future__ import annotations

from qcompiler.artifact.layout import ALIGN, DIGEST, FORMAT, PREFIX
from qcompiler.artifact.read import load
from qcompiler.artifact.write import MissingModulesWarning, save
from qcompiler.files.faults import StandInWarning

__all__ = ["ALIGN", "DIGEST", "FORMAT", "PREFIX", "MissingModulesWarning", "StandInWarning", "load", "save"]
