"""What a saved file consists of, and the bounds that a reader holds it to; docs/saved-files.md has it in words."""

from __future__ import annotations

FORMAT = (2, 0)
FRAMEWORK, VERSION, PROGRAM, DIGEST = "format", "qcompiler.format", "qcompiler.program", "qcompiler.sha256"  # keys of the metadata
NO_DIGEST = "0" * 64  # stands where the digest will, while it is taken
WEIGHTS = "model.safetensors"  # the file in a folder
SEVERAL_FORMS = "call forms"  # the program's `forms` hold the programs of further forms of the call
OTHER_BACKEND = "back ends"  # the program's `backend` names another one than torch
FEATURES: frozenset[str] = frozenset({SEVERAL_FORMS, OTHER_BACKEND})  # that a file may require beyond its format version
HEADER = frozenset({"attributes", "backend", "byte_order", "features", "format", "forms", "tensors", "writer"})  # else: the back end's
MAX_HEADER = 96_000_000  # safetensors takes 100,000,000
MAX_DEPTH = 64
MAX_ENTRIES = 2_000_000  # brackets, commas: bounds what parsing allocates
MAX_TENSORS = 200_000
MAX_DIMS = 16
MAX_SIZE = 2**48
