"""Every error that qcompiler raises on purpose.

QCompilerError
├── TraceError            the model's forward cannot be followed
├── ConfigError           a setting, a model state or a call order that cannot be honoured
├── CalibrationError      missing or unusable calibration data
├── UnsupportedOpError    no int8 form (only with strict=True) or a tensor kind we do not handle
├── NumericsError         NaN, inf or a range that no scale can hold
├── InputError            wrong number, names, shapes or types of inputs
├── OutOfMemoryError      memory that was not there; a MemoryError as well
├── PassError             a pass failed or broke an invariant of its stage
└── ArtifactError         a saved file that is damaged
    ├── ArtifactUnsafeError    ... or asks for something that a loader must not do
    ├── ArtifactVersionError   ... or was written by a newer format
    └── ArtifactWriteError     the file could not be written; the old one is intact
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

PACKAGE = str(Path(__file__).parent)


@dataclass(frozen=True)
class Where:
    """The place an error or a remark is about: an IR node, a module path, a line of the user's code."""

    node: str | None = None
    module_path: str | None = None
    source: str | None = None  # "file.py:12"

    def __str__(self) -> str:
        parts = (("node", self.node), ("module", self.module_path), ("at", self.source))
        return ", ".join(f"{label} {value}" for label, value in parts if value)


class QCompilerError(Exception):
    """Base of all errors: what went wrong, where, and what to do about it.

    `code` is stable and short (kebab-case) so that a program can tell cases apart. `reproducer`: path of a script that shows
    the failure again, where one was written.
    """

    default_code = "error"

    def __init__(self, message: str, *, code: str | None = None, where: Where | None = None, hint: str | None = None) -> None:
        self.message = message
        self.code = code or self.default_code
        self.where = where or Where()
        self.hint = hint
        self.reproducer: str | None = None
        super().__init__(message)

    def __str__(self) -> str:
        place = str(self.where)
        text = self.message + (f"\n  {place}" if place else "")
        text += f"\n  hint: {self.hint}" if self.hint else ""
        return text + (f"\n  reproducer: {self.reproducer}" if self.reproducer else "")


class TraceError(QCompilerError):
    """The model's forward cannot be followed symbolically."""

    default_code = "trace"


class ConfigError(QCompilerError):
    """A setting, a model state or a call order that cannot be honoured."""

    default_code = "config"


class CalibrationError(QCompilerError):
    """Missing or unusable calibration data."""

    default_code = "calibration"


class UnsupportedOpError(QCompilerError):
    """An op without int8 form under strict=True, or a kind of tensor that is not handled."""

    default_code = "unsupported-op"


class NumericsError(QCompilerError):
    """NaN, inf, or a range that no scale can hold."""

    default_code = "numerics"


class InputError(QCompilerError):
    """Wrong number, names, shapes or types of inputs."""

    default_code = "input"


class OutOfMemoryError(QCompilerError, MemoryError):
    """There is not as much memory as the model takes on these inputs."""

    default_code = "out-of-memory"


def out_of_memory(error: BaseException | None) -> OutOfMemoryError | None:
    """What to raise for an error that is about memory, or was caused by such a one; None for any other."""
    while error is not None:
        text = str(error)
        if isinstance(error, OutOfMemoryError):
            return error
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in text):
            size = re.search(r"allocate (\d+) bytes", text)
            asked = f": {int(size[1]):,} bytes at once were asked for ({int(size[1]) / 2**30:,.1f} GiB)" if size else ""
            return OutOfMemoryError(f"there is not enough memory{asked}", hint="give smaller batches or examples, or free memory first")
        error = error.__cause__
    return None


class PassError(QCompilerError):
    """A pass raised, or left the graph in a state that its stage does not allow."""

    default_code = "pass"


class ArtifactError(QCompilerError):
    """A saved file that is damaged."""

    default_code = "artifact"


class ArtifactUnsafeError(ArtifactError):
    """A saved file that asks for something that a loader must not do."""

    default_code = "artifact-unsafe"


class ArtifactVersionError(ArtifactError):
    """A saved file of a newer format, or one that needs a feature we lack."""

    default_code = "artifact-version"


class ArtifactWriteError(ArtifactError):
    """The file could not be written; what stood there before is intact."""

    default_code = "artifact-write"


def callers_level() -> int:
    """What `warnings.warn` takes as stacklevel, in the function that asks, to name the line that called this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame, level = frame.f_back, level + 1
    return level


class QCompilerWarning(UserWarning):
    """Something that a user should look at; the work goes on, with the result that the text states."""
