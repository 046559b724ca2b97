"""load: a file to a compiled module, with every hash, size and name checked."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import warnings
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor, nn

from qcompiler.ambient import in_plain_torch
from qcompiler.artifact.classes import result_classes
from qcompiler.artifact.forms import joined, modules_of_form, tensors_of_form
from qcompiler.artifact.header import entries_of, further_forms, parse_header, program_of
from qcompiler.artifact.layout import ALIGN, DIGEST, FORMAT, MAGIC, MAX_HEADER, PREFIX, Entry, corrupt
from qcompiler.backends.torch.program.build import Built
from qcompiler.backends.torch.program.module import CompiledModule, assemble, index_containers, own_attributes
from qcompiler.backends.torch.program.program import Program, ProgramError
from qcompiler.errors import ArtifactError, ArtifactVersionError, ConfigError, QCompilerError
from qcompiler.ir.check_qparams import scale_fault, zero_point_fault


@in_plain_torch
def load(path: str | os.PathLike[str], modules: Mapping[str, Any] | None = None) -> CompiledModule:
    """The module that `save` wrote; of several call forms, one with all of them, in `call_forms`.

    `modules` gives the float submodules and functions that `save` named, by their names, and may give classes of results.
    Raises ArtifactError naming the damaged section, ArtifactUnsafeError for operations that no program may call,
    ArtifactVersionError for newer formats, ConfigError for a missing engine or entry of `modules`. A newer minor version
    gives a warning.
    """
    with open_regular(path) as file:
        try:
            header, program, tensors, minor = _read(file, os.fstat(file.fileno()).st_size)
        except QCompilerError as error:
            error.message = f"{path}: {error.message}"
            raise
        except (MemoryError, OSError):
            raise
        except Exception as error:  # what no check foresaw is damage all the same
            raise ArtifactError(f"{path}: {corrupt('header', repr(error)[:200]).message}", code="artifact-corrupt") from error
    if minor > FORMAT[1]:
        warnings.warn(f"{path}: written by format {FORMAT[0]}.{minor}, read as {FORMAT[0]}.{FORMAT[1]}", UserWarning, stacklevel=3)
    given, forms = dict(modules or {}), [(header["attributes"], program), *header["forms"]]
    made = []
    for number, (attributes, of_form) in enumerate(forms):
        held = tensors if len(forms) == 1 else tensors_of_form(of_form, number, tensors)
        module = _assemble(str(path), header["engine"], of_form, held, given if len(forms) == 1 else modules_of_form(of_form, given))
        for name, value in attributes.items():
            if name not in own_attributes(module) and not hasattr(CompiledModule, name) and not hasattr(module, name):
                module.__dict__[name] = value
        index_containers(module)
        made.append(module)
    return made[0] if len(made) == 1 else joined(str(path), made, header["attributes"], given)  # type: ignore[return-value]


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


def _read(file: IO[bytes], size: int) -> tuple[dict[str, Any], Program, dict[str, Tensor], int]:
    total = hashlib.sha256()
    length, minor, digest = _prefix(file, size, total)
    raw = _take(file, length, "header", total)
    if hashlib.sha256(raw).digest() != digest:
        raise corrupt("header", "its sha256 differs")
    header = parse_header(raw)
    del raw
    _padding(file, -(PREFIX.size + length) % ALIGN, total)
    program = program_of(header)
    header["forms"] = [(form["attributes"], program_of(form)) for form in further_forms(header)]
    entries = entries_of(header, size - DIGEST - PREFIX.size - length + -(-(PREFIX.size + length) % ALIGN))
    tensors = {}
    for entry in entries:
        tensors[entry.name] = _tensor(file, entry, total)
        _padding(file, -entry.size % ALIGN, total)
    if _take(file, DIGEST, "total", None) != total.digest() or file.read(1):
        raise corrupt("total", "the file's sha256 differs")
    return header, program, tensors, minor


def _take(file: IO[bytes], size: int, section: str, total: Any) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise corrupt(section, "the file ends early")
    if total is not None:
        total.update(data)
    return data


def _padding(file: IO[bytes], size: int, total: Any) -> None:
    if any(_take(file, size, "padding", total)):
        raise corrupt("padding", "it is not zero")


def _prefix(file: IO[bytes], size: int, total: Any) -> tuple[int, int, bytes]:
    if size < PREFIX.size + DIGEST:
        raise corrupt("prefix", f"a file of {size} bytes is too short")
    magic, major, minor, reserved, length, digest = PREFIX.unpack(_take(file, PREFIX.size, "prefix", total))
    if magic != MAGIC:
        raise ArtifactError("corrupt at magic: this is not a file that qcompiler saved", code="artifact-magic")
    if major > FORMAT[0]:
        text = f"written by format {major}.{minor}; this qcompiler reads up to {FORMAT[0]}.{FORMAT[1]}"
        raise ArtifactVersionError(text, hint="upgrade qcompiler")
    if major < 1 or reserved:
        raise corrupt("prefix", "no such version")
    if not 0 < length <= min(MAX_HEADER, size - PREFIX.size - DIGEST):
        raise corrupt("header", f"a length of {length} bytes is not possible")
    return length, minor, digest


def _tensor(file: IO[bytes], entry: Entry, total: Any) -> Tensor:
    buffer = bytearray(_take(file, entry.size, entry.section, total))
    if hashlib.sha256(buffer).hexdigest() != entry.sha256:
        raise corrupt(entry.section, "its sha256 differs")
    if not entry.size:
        return torch.empty(entry.shape, dtype=entry.dtype)
    return torch.frombuffer(buffer, dtype=torch.uint8).view(entry.dtype).reshape(entry.shape)


def _assemble(path: str, engine: str, program: Program, tensors: dict[str, Tensor], modules: dict[str, Any]) -> CompiledModule:
    needed = program.leaves + program.externals
    missing, unknown = [n for n in needed if n not in modules], [n for n in modules if n not in needed + program.records]
    if missing or unknown:
        text = f"needs modules= for {', '.join(missing)}" if missing else f"has no submodule or function {', '.join(unknown)}"
        raise ConfigError(f"{path}: the saved module {text:.2000}", code="load-modules")
    leaves = {n: modules[n] for n in program.leaves}
    if wrong := [n for n, m in leaves.items() if not isinstance(m, nn.Module)]:
        raise ConfigError(f"{path}: {', '.join(wrong)} must be nn.Module instances", code="load-modules")
    own = {program.scales_name, program.zero_points_name}
    owned = tuple(f"{leaf}." for leaf in leaves)
    held = {n: t for n, t in tensors.items() if n not in own and not n.startswith(owned)}
    try:
        scales, zero_points = (tensors.get(n) for n in (program.scales_name, program.zero_points_name))
        if scales is None or zero_points is None or not scales.shape == zero_points.shape == (program.qparams,):
            raise corrupt("tensor table", "activation parameters are missing")
        if fault := scale_fault(scales) or zero_point_fault(zero_points, torch.uint8):
            raise corrupt("activation parameters", fault)
        built = Built(program, held, scales.tolist(), zero_points.tolist(), leaves,
                      {n: modules[n] for n in program.externals} | result_classes(path, program, modules))  # fmt: skip
        module = assemble(built, engine)
        if owned:
            module.load_state_dict(tensors)
    except ProgramError as error:
        raise ArtifactError(f"{path}: {error.message}", code="artifact-program") from error
    except QCompilerError:
        raise
    except Exception as error:  # a kernel refuses the tensors of a file that was made by hand
        raise ArtifactError(f"{path}: the program cannot be built: {error!s:.400}", code="artifact-program") from error
    return module
