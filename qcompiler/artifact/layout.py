"""What a saved file consists of, and the bounds that a reader holds it to."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch

MAGIC = b"\x89QCPL\r\n\x1a"  # as PNG's: not text, and damaged by a transfer in text mode
FORMAT = (1, 0)
SEVERAL_FORMS = "call forms"  # the header's `forms` hold the programs of further forms of the call
OTHER_BACKEND = "back ends"  # the header's `backend` names another one than torch
FEATURES: frozenset[str] = frozenset({SEVERAL_FORMS, OTHER_BACKEND})  # that a file may require beyond its format version
HEADER = frozenset({"attributes", "backend", "byte_order", "features", "format", "forms", "tensors", "writer"})  # else: the back end's
PREFIX = struct.Struct("<8sHHIQ32s")
ALIGN = 64
DIGEST = 32
MAX_HEADER = 64 * 2**20
MAX_DEPTH = 64
MAX_ENTRIES = 2_000_000  # brackets, commas: bounds what parsing allocates
MAX_TENSORS = 200_000
MAX_DIMS = 16


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies, counted from the end of the header."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    size: int
    sha256: str

    @property
    def section(self) -> str:
        return f"tensor {self.name!r:.200}"
