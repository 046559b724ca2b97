"""load: a file to a compiled module, with every hash, size and name checked."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import torch
from torch import Tensor

from qcompiler.ambient import in_plain_torch
from qcompiler.artifact.foreign import foreign
from qcompiler.artifact.forms import joined, tensors_of_form
from qcompiler.artifact.header import entries_of, further_forms, parse_header, payload_of
from qcompiler.artifact.layout import ALIGN, DIGEST, FORMAT, MAGIC, MAX_HEADER, PREFIX, Entry
from qcompiler.backends import Stored, backend_of, names
from qcompiler.errors import ArtifactError, ArtifactVersionError, ConfigError, QCompilerError
from qcompiler.executable import Executable
from qcompiler.files.faults import corrupt


@in_plain_torch
def load(path: str | os.PathLike[str], modules: Mapping[str, object] | None = None) -> Executable:
    """The module that `save` wrote; of several call forms, one with all of them, in `call_forms`.

    `modules` gives the float submodules and functions that `save` named, by their names, and may give classes of results.
    Raises ArtifactError naming the damaged section, ArtifactUnsafeError for operations that no program may call,
    ArtifactVersionError for newer formats, ConfigError for a missing engine or entry of `modules`. A newer minor version
    gives a warning.
    """
    given = dict(modules or {})
    with open_regular(path) as file, _named(str(path)):
        header, tensors, minor = _read(file, os.fstat(file.fileno()).st_size)
    if minor > FORMAT[1]:
        warnings.warn(f"{path}: written by format {FORMAT[0]}.{minor}, read as {FORMAT[0]}.{FORMAT[1]}", UserWarning, stacklevel=3)
    with _named(str(path)):
        return _modules(str(path), header, tensors, given)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Puts the file's name before the message of an error; what no check foresaw is damage all the same."""
    try:
        yield
    except QCompilerError as error:
        error.message = f"{path}: {error.message}"
        raise
    except (MemoryError, OSError, Warning):
        raise
    except Exception as error:
        raise ArtifactError(f"{path}: {corrupt('header', repr(error)[:200]).message}", code="artifact-corrupt") from error


def _modules(path: str, header: dict[str, Any], tensors: dict[str, Tensor], given: Mapping[str, object]) -> Executable:
    """What the header's back end makes of each form of the call."""
    forms, made = [header, *header["forms"]], []
    for number, form in enumerate(forms):
        held = tensors if len(forms) == 1 else tensors_of_form(number, tensors)
        module = _loader(header["backend"])(Stored(path, payload_of(form), held, given, shared=len(forms) > 1))
        own = module._own_attributes()
        for name, value in form["attributes"].items():
            if name not in own and not hasattr(type(module), name) and not hasattr(module, name):
                module.__dict__[name] = value
        module._attributes_changed()
        made.append(module)
    return made[0] if len(made) == 1 else joined(made, header["attributes"], given)  # type: ignore[return-value]


def _loader(name: str) -> Callable[[Stored], Executable]:
    """The `load` of a back end. Raises ConfigError where it is not registered, or keeps no files."""
    try:
        load = backend_of(name).load
    except ConfigError as error:
        error.hint = f"import the package that registers it first; here are {', '.join(names())}"
        raise
    if load is None:
        raise ConfigError(f"the back end {name} reads no files", code="backend")
    return load


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """The file, opened for reading; ArtifactError for anything that is no regular file, without waiting for a FIFO's writer."""
    try:
        descriptor = os.open(os.fspath(path), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError, TypeError) as error:  # ValueError: a NUL in the path; TypeError: no path
        reason = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(f"{path!s:.400} cannot be read: {reason}", code="artifact-unreadable") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = f" cannot be read: {os.strerror(errno.EISDIR)}" if stat.S_ISDIR(mode) else ": not a regular file"
        raise ArtifactError(f"{path}{what}", code="artifact-unreadable")
    return open(descriptor, "rb")  # the caller closes it


def _read(file: IO[bytes], size: int) -> tuple[dict[str, object], dict[str, Tensor], int]:
    total = hashlib.sha256()
    length, minor, digest = _prefix(file, size, total)
    raw = _take(file, length, "header", total)
    if hashlib.sha256(raw).digest() != digest:
        raise corrupt("header", "its sha256 differs")
    header = parse_header(raw)
    del raw
    _padding(file, -(PREFIX.size + length) % ALIGN, total)
    header["forms"] = further_forms(header)
    entries = entries_of(header, size - DIGEST - PREFIX.size - length + -(-(PREFIX.size + length) % ALIGN))
    tensors = {}
    for entry in entries:
        tensors[entry.name] = _tensor(file, entry, total)
        _padding(file, -entry.size % ALIGN, total)
    if _take(file, DIGEST, "total", None) != total.digest() or file.read(1):
        raise corrupt("total", "the file's sha256 differs")
    return header, tensors, minor


def _take(file: IO[bytes], size: int, section: str, total: Any) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise corrupt(section, "the file ends early")
    if total is not None:
        total.update(data)
    return data


def _padding(file: IO[bytes], size: int, total: object) -> None:
    if any(_take(file, size, "padding", total)):
        raise corrupt("padding", "it is not zero")


def _prefix(file: IO[bytes], size: int, total: object) -> tuple[int, int, bytes]:
    if size < PREFIX.size + DIGEST:
        raise corrupt("prefix", f"a file of {size} bytes is too short")
    magic, major, minor, reserved, length, digest = PREFIX.unpack(_take(file, PREFIX.size, "prefix", total))
    if magic != MAGIC:
        raise foreign(magic)
    if major > FORMAT[0]:
        text = f"written by format {major}.{minor}; this qcompiler reads up to {FORMAT[0]}.{FORMAT[1]}"
        raise ArtifactVersionError(text, hint="upgrade qcompiler")
    if major < 1 or reserved:
        raise corrupt("prefix", "no such version")
    if not 0 < length <= min(MAX_HEADER, size - PREFIX.size - DIGEST):
        raise corrupt("header", f"a length of {length} bytes is not possible")
    return length, minor, digest


def _tensor(file: IO[bytes], entry: Entry, total: object) -> Tensor:
    buffer = bytearray(_take(file, entry.size, entry.section, total))
    if hashlib.sha256(buffer).hexdigest() != entry.sha256:
        raise corrupt(entry.section, "its sha256 differs")
    if not entry.size:
        return torch.empty(entry.shape, dtype=entry.dtype)
    return torch.frombuffer(buffer, dtype=torch.uint8).view(entry.dtype).reshape(entry.shape)
