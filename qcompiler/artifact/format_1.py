"""Files of format 1, which are read and no longer written.

magic (8)  major, minor (2 x u16)  reserved (u32, 0)  header length (u64)  sha256 of the header (32)
header: canonical JSON                    padded with zeros to a multiple of 64
tensors, raw, little endian, C order      each at a multiple of 64 from the end of the header, in the header's order
sha256 of everything before (32)
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from qcompiler.artifact.header import parse
from qcompiler.artifact.layout import FORMAT, MAX_DIMS, MAX_SIZE, MAX_TENSORS
from qcompiler.errors import ArtifactVersionError
from qcompiler.executable.tensors import is_path
from qcompiler.files.dtypes import DTYPES, is_plain
from qcompiler.files.faults import corrupt

MAGIC = b"\x89QCPL\r\n\x1a"  # as PNG's: not text, and damaged by a transfer in text mode
PREFIX = struct.Struct("<8sHHIQ32s")
ALIGN = 64
DIGEST = 32
MAX_HEADER = 64 * 2**20


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


def read(file: IO[bytes], size: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors, with every hash, size and name checked."""
    total = hashlib.sha256()
    length, digest = _prefix(file, size, total)
    raw = _take(file, length, "header", total)
    if hashlib.sha256(raw).digest() != digest:
        raise corrupt("header", "its sha256 differs")
    header = parse(raw, "header")
    del raw
    if header.get("byte_order") != "little":
        raise ArtifactVersionError(f"byte order {header.get('byte_order')!r:.40} is not supported")
    _padding(file, -(PREFIX.size + length) % ALIGN, total)
    entries = _entries(header, size - DIGEST - PREFIX.size - length + -(-(PREFIX.size + length) % ALIGN))
    tensors = {}
    for entry in entries:
        tensors[entry.name] = _tensor(file, entry, total)
        _padding(file, -entry.size % ALIGN, total)
    if _take(file, DIGEST, "total", None) != total.digest() or file.read(1):
        raise corrupt("total", "the file's sha256 differs")
    return header, tensors


def _take(file: IO[bytes], size: int, section: str, total: hashlib._Hash | None) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise corrupt(section, "the file ends early")
    if total is not None:
        total.update(data)
    return data


def _padding(file: IO[bytes], size: int, total: hashlib._Hash) -> None:
    if any(_take(file, size, "padding", total)):
        raise corrupt("padding", "it is not zero")


def _prefix(file: IO[bytes], size: int, total: hashlib._Hash) -> tuple[int, bytes]:
    if size < PREFIX.size + DIGEST:
        raise corrupt("prefix", f"a file of {size} bytes is too short")
    _, major, minor, reserved, length, digest = PREFIX.unpack(_take(file, PREFIX.size, "prefix", total))
    if (major, minor) > (1, 0):
        text = f"written by format {major}.{minor}; this qcompiler reads up to {FORMAT[0]}.{FORMAT[1]}"
        raise ArtifactVersionError(text, hint="upgrade qcompiler")
    if (major, minor) != (1, 0) or reserved:
        raise corrupt("prefix", "no such version")
    if not 0 < length <= min(MAX_HEADER, size - PREFIX.size - DIGEST):
        raise corrupt("header", f"a length of {length} bytes is not possible")
    return length, digest


def _entries(header: dict[str, object], room: int) -> list[Entry]:
    """The tensor table: in order, aligned, without gap or overlap, each size = shape x dtype, all of it within the file."""
    listed = header.get("tensors")
    if not isinstance(listed, list) or len(listed) > MAX_TENSORS:
        raise corrupt("tensor table", "bad table")
    entries: list[Entry] = []
    end = 0
    for item in listed:
        entry = _entry(item)
        if entry.offset != end or (entries and entry.name <= entries[-1].name):
            raise corrupt(entry.section, "out of place")
        end += entry.size + -entry.size % ALIGN
        entries.append(entry)
    if end != room:
        raise corrupt("tensor table", f"it describes {end} bytes, the file has {room}")
    return entries


def _entry(item: Any) -> Entry:
    try:
        name, dtype, shape, offset, size, digest = item
        ok = is_path(name) and dtype in DTYPES and type(offset) is int and type(size) is int and isinstance(digest, str)
        ok = ok and isinstance(shape, list) and len(shape) <= MAX_DIMS and all(type(d) is int and 0 <= d < MAX_SIZE for d in shape)
    except (TypeError, ValueError):
        ok = False
    if not ok:
        raise corrupt("tensor table", "bad entry")
    entry = Entry(name, DTYPES[dtype], tuple(shape), offset, size, digest)
    if not is_plain(entry.dtype):
        raise corrupt(entry.section, "bad dtype")
    if math.prod(shape) * entry.dtype.itemsize != size:
        raise corrupt(entry.section, f"{size} bytes do not hold shape {shape}")
    return entry


def _tensor(file: IO[bytes], entry: Entry, total: hashlib._Hash) -> Tensor:
    buffer = bytearray(_take(file, entry.size, entry.section, total))
    if hashlib.sha256(buffer).hexdigest() != entry.sha256:
        raise corrupt(entry.section, "its sha256 differs")
    if not entry.size:
        return torch.empty(entry.shape, dtype=entry.dtype)
    return torch.frombuffer(buffer, dtype=torch.uint8).view(entry.dtype).reshape(entry.shape)
