"""save / load: a compiled module as one file of plain data; loading it runs no code of the file.

    magic (8)  major, minor (2 x u16)  reserved (u32, 0)  header length (u64)  sha256 of the header (32)
    header: canonical JSON                    padded with zeros to a multiple of 64
    tensors, raw, little endian, C order      each at a multiple of 64 from the end of the header, in the header's order
    sha256 of everything before (32)

The hashes prove integrity, not origin: whoever can write the file can write its hashes. Operations are names from a fixed
registry (qcompiler/codegen/registry.py). Submodules left float and functions of the user's are not data: `save` names them and
`load` takes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
import struct
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from qcompiler.checks import MARK
from qcompiler.codegen.atomic import atomic_write
from qcompiler.codegen.build import Built
from qcompiler.codegen.module import CompiledModule, assemble, own_attributes
from qcompiler.codegen.program import Program, ProgramError, canonical, is_path
from qcompiler.codegen.registry import UnknownOpError
from qcompiler.codegen.values import DTYPE_NAMES, DTYPES, from_json, to_json
from qcompiler.errors import ArtifactError, ArtifactUnsafeError, ArtifactVersionError, ConfigError, QCompilerError

MAGIC = b"\x89QCPL\r\n\x1a"  # as PNG's: not text, and damaged by a transfer in text mode
FORMAT = (1, 0)
FEATURES: frozenset[str] = frozenset()  # that a file may require beyond its format version
PREFIX = struct.Struct("<8sHHIQ32s")
ALIGN = 64
DIGEST = 32
MAX_HEADER = 64 * 2**20
MAX_DEPTH = 64
MAX_ENTRIES = 2_000_000  # brackets, commas: bounds what parsing allocates
MAX_TENSORS = 200_000
MAX_DIMS = 16


class MissingModulesWarning(UserWarning):
    """A saved module calls float submodules or functions that the file cannot hold."""


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


def save(module: CompiledModule, path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Writes the module to one file, atomically; the same module gives the same bytes.

    Returns the names that `load` will need in `modules=` (with a MissingModulesWarning where there are any). Raises
    ArtifactWriteError, with what stood at `path` intact; ConfigError for anything but a compiled module.
    """
    if not isinstance(module, CompiledModule):
        eager = getattr(module, MARK, None) == "converted"
        hint = "keep an eager model by its state_dict, torch.save or TorchScript" if eager else "convert_fx first"
        raise ConfigError(f"save takes a converted module of convert_fx, not {type(module).__qualname__}", code="save", hint=hint)
    needed = module.program.leaves + module.program.externals
    if needed:
        names = ", ".join(needed)
        text = f"{path}: the file cannot hold float submodules and functions of your own: {names}; load it with modules={{name: module}}"
        warnings.warn(text, MissingModulesWarning, stacklevel=2)
    atomic_write(Path(path), _chunks(module))
    return needed


def _raw(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1)
    raw: Any = flat.view(torch.uint8).numpy()
    return memoryview(raw) if flat.numel() else memoryview(b"")


def tensors_of(module: CompiledModule) -> dict[str, Tensor]:
    """The state_dict's tensors, sorted by name. Raises ConfigError for what a file cannot hold."""
    state = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    for name, tensor in state.items():
        if tensor.is_quantized or tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise ConfigError(f"{name!r} is not a plain tensor on the CPU; a file cannot hold it", code="save")
    return dict(sorted(state.items()))


def _chunks(module: CompiledModule) -> Iterator[bytes | memoryview]:
    """The file in order. A tensor's bytes follow the machine, so only little-endian ones write."""
    if sys.byteorder != "little":
        raise ConfigError("artifacts are little endian; this machine is not", code="save")
    tensors, entries, end = tensors_of(module), [], 0
    for name, tensor in tensors.items():
        raw = _raw(tensor)
        entries.append([name, DTYPE_NAMES[tensor.dtype], list(tensor.shape), end, len(raw), hashlib.sha256(raw).hexdigest()])
        end += len(raw) + -len(raw) % ALIGN
    data = {
        "attributes": _attributes(module),
        "byte_order": "little",
        "engine": module.engine,
        "features": [],
        "format": list(FORMAT),
        "program": module.program.to_data(),
        "tensors": entries,
        "writer": "qcompiler",
    }
    header = canonical(data).encode("ascii")
    total = hashlib.sha256()
    for chunk in _body(header, tensors):
        total.update(chunk)
        yield chunk
    yield total.digest()


def _attributes(module: CompiledModule) -> dict[str, Any]:
    """The user's attributes that are plain data, as JSON."""
    found = {}
    for name in sorted(set(module.__dict__) - set(own_attributes(module))):
        with contextlib.suppress(QCompilerError):
            found[name] = to_json(module.__dict__[name])
    return found


def _body(header: bytes, tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    if len(header) > MAX_HEADER:
        raise ConfigError(f"the program takes {len(header)} bytes, more than the {MAX_HEADER} of a file's header", code="save")
    yield PREFIX.pack(MAGIC, *FORMAT, 0, len(header), hashlib.sha256(header).digest())
    yield header
    yield bytes(-(PREFIX.size + len(header)) % ALIGN)
    for tensor in tensors.values():
        raw = _raw(tensor)
        yield raw
        yield bytes(-len(raw) % ALIGN)


def load(path: str | os.PathLike[str], modules: Mapping[str, Any] | None = None) -> CompiledModule:
    """The module that `save` wrote. `modules` gives the float submodules and functions that `save` named, by their names.

    Raises ArtifactError naming the damaged section, ArtifactUnsafeError for operations that no program may call,
    ArtifactVersionError for newer formats, ConfigError for a missing engine or entry of `modules`. A newer minor version
    gives a warning.
    """
    try:
        opened = open(path, "rb")  # noqa: SIM115  (closed by the with below)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}", code="artifact-unreadable") from error
    with opened as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise ArtifactError(f"{path}: not a regular file")
        try:
            header, program, tensors, minor = _read(file, info.st_size)
        except QCompilerError as error:
            error.message = f"{path}: {error.message}"
            raise
    if minor > FORMAT[1]:
        warnings.warn(f"{path}: written by format {FORMAT[0]}.{minor}, read as {FORMAT[0]}.{FORMAT[1]}", UserWarning, stacklevel=2)
    module = _assemble(str(path), header["engine"], program, tensors, dict(modules or {}))
    for name, value in header["attributes"].items():
        if name not in own_attributes(module) and not hasattr(CompiledModule, name) and not hasattr(module, name):
            module.__dict__[name] = value
    return module


def _corrupt(section: str, why: str) -> ArtifactError:
    return ArtifactError(f"corrupt at {section}: {why}", code="artifact-corrupt")


def _read(file: IO[bytes], size: int) -> tuple[dict[str, Any], Program, dict[str, Tensor], int]:
    total = hashlib.sha256()
    length, minor, digest = _prefix(file, size, total)
    raw = _take(file, length, "header", total)
    if hashlib.sha256(raw).digest() != digest:
        raise _corrupt("header", "its sha256 differs")
    header = _parse(raw)
    del raw
    _padding(file, -(PREFIX.size + length) % ALIGN, total)
    program = _program(header)
    entries = _entries(header, size - DIGEST - PREFIX.size - length + -(-(PREFIX.size + length) % ALIGN))
    tensors = {}
    for entry in entries:
        tensors[entry.name] = _tensor(file, entry, total)
        _padding(file, -entry.size % ALIGN, total)
    if _take(file, DIGEST, "total", None) != total.digest() or file.read(1):
        raise _corrupt("total", "the file's sha256 differs")
    return header, program, tensors, minor


def _take(file: IO[bytes], size: int, section: str, total: Any) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise _corrupt(section, "the file ends early")
    if total is not None:
        total.update(data)
    return data


def _padding(file: IO[bytes], size: int, total: Any) -> None:
    if any(_take(file, size, "padding", total)):
        raise _corrupt("padding", "it is not zero")


def _prefix(file: IO[bytes], size: int, total: Any) -> tuple[int, int, bytes]:
    if size < PREFIX.size + DIGEST:
        raise _corrupt("prefix", f"a file of {size} bytes is too short")
    magic, major, minor, reserved, length, digest = PREFIX.unpack(_take(file, PREFIX.size, "prefix", total))
    if magic != MAGIC:
        raise ArtifactError("corrupt at magic: this is not a file that qcompiler saved", code="artifact-magic")
    if major > FORMAT[0]:
        text = f"written by format {major}.{minor}; this qcompiler reads up to {FORMAT[0]}.{FORMAT[1]}"
        raise ArtifactVersionError(text, hint="upgrade qcompiler")
    if major < 1 or reserved:
        raise _corrupt("prefix", "no such version")
    if not 0 < length <= min(MAX_HEADER, size - PREFIX.size - DIGEST):
        raise _corrupt("header", f"a length of {length} bytes is not possible")
    return length, minor, digest


def _parse(raw: bytes) -> dict[str, Any]:
    """JSON with every bound checked: entries, depth, duplicate keys, numbers."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) != len(items):
            raise ValueError("a key stands twice")
        return made

    def real(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError("a number is not finite")
        return value

    if sum(raw.count(c) for c in (b"[", b"{", b",")) > MAX_ENTRIES:
        raise _corrupt("header", "too many entries")
    try:
        data = json.loads(raw.decode("ascii"), object_pairs_hook=pairs, parse_float=real, parse_constant=real)
        if _depth(data) > MAX_DEPTH:
            raise ValueError("nested too deep")
    except (ValueError, RecursionError) as error:
        raise _corrupt("header", f"not JSON as it should be ({error!s:.100})") from None
    if not isinstance(data, dict):
        raise _corrupt("header", "not an object")
    _compatible(data)
    return data


def _depth(data: Any) -> int:
    depth, level = 0, [data]
    while level := [v for v in level if isinstance(v, (dict, list))]:
        depth += 1
        level = [child for v in level for child in (v.values() if isinstance(v, dict) else v)]
    return depth


def _compatible(header: dict[str, Any]) -> None:
    if header.get("byte_order") != "little" or sys.byteorder != "little":
        raise ArtifactVersionError(f"byte order {header.get('byte_order')!r:.40} is not supported; found {sys.byteorder} here")
    features = header.get("features")
    if not isinstance(features, list) or not all(isinstance(f, str) for f in features):
        raise _corrupt("header", "bad features")
    unknown = [f for f in features if f not in FEATURES]
    if unknown:
        raise ArtifactVersionError(f"it needs {', '.join(unknown)!r:.200}, which this qcompiler lacks", hint="upgrade qcompiler")
    if not isinstance(header.get("engine"), str):
        raise _corrupt("header", "no engine")
    try:
        header["attributes"] = {name: from_json(value) for name, value in header["attributes"].items()}
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise _corrupt("attributes", repr(error)[:100]) from None


def _program(header: dict[str, Any]) -> Program:
    try:
        return Program.from_data(header.get("program"))
    except UnknownOpError as error:
        raise ArtifactUnsafeError(error.message, hint="saved by a newer qcompiler, or not by qcompiler") from None
    except ProgramError as error:
        raise _corrupt("program", error.message) from None


def _entries(header: dict[str, Any], room: int) -> list[Entry]:
    """The tensor table: in order, aligned, without gap or overlap, each size = shape x dtype, all of it within the file."""
    listed = header.get("tensors")
    if not isinstance(listed, list) or len(listed) > MAX_TENSORS:
        raise _corrupt("tensor table", "bad table")
    entries: list[Entry] = []
    end = 0
    for item in listed:
        entry = _entry(item)
        if entry.offset != end or (entries and entry.name <= entries[-1].name):
            raise _corrupt(entry.section, "out of place")
        end += entry.size + -entry.size % ALIGN
        entries.append(entry)
    if end != room:
        raise _corrupt("tensor table", f"it describes {end} bytes, the file has {room}")
    return entries


def _entry(item: Any) -> Entry:
    try:
        name, dtype, shape, offset, size, digest = item
        ok = is_path(name) and dtype in DTYPES and type(offset) is int and type(size) is int and isinstance(digest, str)
        ok = ok and isinstance(shape, list) and len(shape) <= MAX_DIMS and all(type(d) is int and 0 <= d < 2**48 for d in shape)
    except (TypeError, ValueError):
        ok = False
    if not ok:
        raise _corrupt("tensor table", "bad entry")
    entry = Entry(name, DTYPES[dtype], tuple(shape), offset, size, digest)
    if entry.dtype.is_complex or str(entry.dtype).startswith(("torch.q", "torch.bits")):
        raise _corrupt(entry.section, "bad dtype")
    if math.prod(shape) * entry.dtype.itemsize != size:
        raise _corrupt(entry.section, f"{size} bytes do not hold shape {shape}")
    return entry


def _tensor(file: IO[bytes], entry: Entry, total: Any) -> Tensor:
    buffer = bytearray(_take(file, entry.size, entry.section, total))
    if hashlib.sha256(buffer).hexdigest() != entry.sha256:
        raise _corrupt(entry.section, "its sha256 differs")
    if not entry.size:
        return torch.empty(entry.shape, dtype=entry.dtype)
    return torch.frombuffer(buffer, dtype=torch.uint8).view(entry.dtype).reshape(entry.shape)


def _assemble(path: str, engine: str, program: Program, tensors: dict[str, Tensor], modules: dict[str, Any]) -> CompiledModule:
    needed = program.leaves + program.externals
    missing, unknown = [n for n in needed if n not in modules], [n for n in modules if n not in needed]
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
            raise _corrupt("tensor table", "activation parameters are missing")
        built = Built(program, held, scales.tolist(), zero_points.tolist(), leaves, {n: modules[n] for n in program.externals})
        module = assemble(built, engine)
        if owned:
            module.load_state_dict(tensors)
    except QCompilerError:
        raise
    except Exception as error:  # a kernel refuses the tensors of a file that was made by hand
        raise ArtifactError(f"{path}: the program cannot be built: {error!s:.400}", code="artifact-program") from error
    return module
