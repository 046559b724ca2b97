"""load: a file to a compiled module, with every hash, size and name checked."""

from __future__ import annotations

import errno
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from torch import Tensor

from qcompiler.ambient import in_plain_torch
from qcompiler.artifact import container, format_1
from qcompiler.artifact.forms import joined, tensors_of_form
from qcompiler.artifact.header import check_program, further_forms, payload_of
from qcompiler.artifact.layout import FORMAT, WEIGHTS
from qcompiler.backends import Stored, backend_of, names
from qcompiler.errors import ArtifactError, ConfigError, QCompilerError, QCompilerWarning
from qcompiler.executable import Executable
from qcompiler.files.faults import corrupt
from qcompiler.inputs.door import door


@in_plain_torch
@door
def load(path: str | os.PathLike[str], modules: Mapping[str, object] | None = None) -> Executable:
    """The module that `save` wrote, from a file or a folder; of several call forms, one with all of them, in `call_forms`.

    `modules` gives the float submodules and functions that `save` named, by their names, and may give classes of results.
    Raises ArtifactError naming the damaged section, ArtifactUnsafeError for operations that no program may call,
    ArtifactVersionError for newer formats, ConfigError for a missing engine or entry of `modules`. A newer minor version
    gives a warning.
    """
    given = dict(modules or {})
    path = file_of(path)
    with open_regular(path) as file, _named(str(path)):
        header, tensors, version = read(file, os.fstat(file.fileno()).st_size)
    if version > FORMAT:
        text = f"{path}: written by format {version[0]}.{version[1]}, read as {FORMAT[0]}.{FORMAT[1]}"
        warnings.warn(text, QCompilerWarning, stacklevel=3)
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


def file_of(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The file that holds the module: the one in a folder that `save` wrote, else what was given."""
    if isinstance(path, (str, os.PathLike)) and os.path.isdir(path):
        inside = os.path.join(os.fsdecode(path), WEIGHTS)
        return inside if os.path.lexists(inside) else path
    return path


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


def read(file: IO[bytes], size: int) -> tuple[dict[str, Any], dict[str, Tensor], tuple[int, int]]:
    """What a file of any format holds: the program with its further forms, the tensors, the version."""
    old = file.read(len(format_1.MAGIC)) == format_1.MAGIC
    file.seek(0)
    header, tensors, version = (*format_1.read(file, size), (1, 0)) if old else container.read(file, size)
    check_program(header)
    header["forms"] = further_forms(header)
    return header, tensors, version
