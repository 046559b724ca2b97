"""The file: safetensors, with the program and what proves the whole of it in the metadata."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any

import torch
from safetensors import SafetensorError, deserialize
from torch import Tensor

from qcompiler.artifact.foreign import foreign
from qcompiler.artifact.header import parse
from qcompiler.artifact.layout import (
    DIGEST,
    FORMAT,
    FRAMEWORK,
    MAX_DIMS,
    MAX_HEADER,
    MAX_SIZE,
    MAX_TENSORS,
    NO_DIGEST,
    PROGRAM,
    VERSION,
)
from qcompiler.errors import ArtifactVersionError, ConfigError
from qcompiler.executable.tensors import is_path
from qcompiler.files.dtypes import DTYPE_NAMES, DTYPES, is_plain
from qcompiler.files.faults import corrupt
from qcompiler.files.safetensors import BYTES, METADATA, SAFETENSORS, framed, raw_of, table_of
from qcompiler.files.values import canonical

_DIGEST = f'"{DIGEST}":"'.encode()  # inside of a text its quotes are escaped, and the key of a tensor has no text behind it
_VERSION = re.compile(r"(\d{1,9})\.(\d{1,9})", re.ASCII)
PARTS = frozenset({"data_offsets", "dtype", "shape"})


def chunks(program: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The file in order: a function of what it holds alone. Raises ConfigError for a program that is too large, and names of tensors."""
    table = table_of(tensors)
    held = {name: [DTYPE_NAMES[tensors[name].dtype], hashlib.sha256(raw_of(tensors[name])).hexdigest()] for name in table}
    text = canonical({**program, "tensors": held})
    version = f"{FORMAT[0]}.{FORMAT[1]}"
    header = framed({METADATA: {FRAMEWORK: "pt", VERSION: version, PROGRAM: text, DIGEST: NO_DIGEST}, **table})
    if len(header) - 8 > MAX_HEADER:
        raise ConfigError(f"the program takes {len(header)} bytes, more than the {MAX_HEADER} of a file's header", code="save")
    at = header.index(_DIGEST) + len(_DIGEST)
    yield header[:at] + hashlib.sha256(header).hexdigest().encode("ascii") + header[at + len(NO_DIGEST) :]
    for name in table:
        yield raw_of(tensors[name])


def read(file: IO[bytes], size: int) -> tuple[dict[str, Any], dict[str, Tensor], tuple[int, int]]:
    """The program, the tensors and the version, with every hash, size and name checked."""
    framed_header = _framed_header(file, size)
    header = parse(framed_header[8:], "header")
    metadata = header.pop(METADATA, None)
    if not isinstance(metadata, dict) or VERSION not in metadata:
        raise foreign(framed_header)
    version = _version(metadata[VERSION])
    _check_digest(framed_header, metadata)
    program = parse(metadata[PROGRAM].encode("utf-8"), "program")
    held = program.pop("tensors", None)
    if not isinstance(held, dict) or len(header) > MAX_TENSORS or held.keys() != header.keys():
        raise corrupt("tensor table", "it and the program name other tensors")
    if any(not isinstance(entry, dict) or entry.keys() != PARTS for entry in header.values()):
        raise corrupt("tensor table", "bad entry")
    return program, _tensors(file, size, framed_header, held), version


def _framed_header(file: IO[bytes], size: int) -> bytes:
    """The length and the header, as they stand there. What is no safetensors file has an error that says what it is."""
    start = file.read(16)
    if len(start) < 9:
        raise corrupt("prefix", f"a file of {size} bytes is too short")
    length = int.from_bytes(start[:8], "little")
    if start[8:9] != b"{":
        raise foreign(start)
    if not 1 < length <= min(MAX_HEADER, size - 8):
        raise corrupt("header", f"a length of {length} bytes is not possible")
    file.seek(0)
    raw = file.read(8 + length)
    if len(raw) != 8 + length:
        raise corrupt("header", "the file ends early")
    return raw


def _version(text: object) -> tuple[int, int]:
    match = _VERSION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise corrupt("header", "no such version")
    version = int(match[1]), int(match[2])
    if version[0] > FORMAT[0]:
        raise ArtifactVersionError(
            f"written by format {text}; this qcompiler reads up to {FORMAT[0]}.{FORMAT[1]}", hint="upgrade qcompiler"
        )
    if version[0] < FORMAT[0]:
        raise corrupt("header", "no such version")
    return version


def _check_digest(raw: bytes, metadata: dict[str, str]) -> None:
    """The sha256 of length and header, taken with zeros in its own place."""
    if metadata.keys() != {FRAMEWORK, VERSION, PROGRAM, DIGEST} or not all(isinstance(value, str) for value in metadata.values()):
        raise corrupt("header", "bad metadata")
    at = raw.find(_DIGEST) + len(_DIGEST)
    zeroed = raw[:at] + NO_DIGEST.encode("ascii") + raw[at + len(NO_DIGEST) :]
    if len(metadata[DIGEST]) != len(NO_DIGEST) or hashlib.sha256(zeroed).hexdigest() != metadata[DIGEST]:
        error = corrupt("header", "its sha256 differs")
        error.hint = "a file that another tool wrote anew, or whose metadata was edited, has to be saved again by qcompiler"
        raise error


def _tensors(file: IO[bytes], size: int, framed_header: bytes, held: dict[str, object]) -> dict[str, Tensor]:
    """Sorted by name. The library holds the table to the file: every size, no gap, no overlap, nothing behind the last tensor."""
    file.seek(0)
    data = file.read(size)
    if len(data) != size or file.read(1) or not data.startswith(framed_header):
        raise corrupt("tensor table", "the file changed while it was read")
    try:
        found = dict(deserialize(data))
    except SafetensorError as error:
        raise corrupt("tensor table", f"{error!s:.200}") from None
    del data
    if found.keys() != held.keys():
        raise corrupt("tensor table", "it and the program name other tensors")
    return {name: _tensor(name, found.pop(name), held[name]) for name in sorted(held)}


def _tensor(name: str, entry: dict[str, Any], held: object) -> Tensor:
    section = f"tensor {name!r:.200}"
    shape, dtype = list(entry["shape"]), _dtype(held, section)
    bare = DTYPE_NAMES[dtype] not in SAFETENSORS
    if not is_path(name) or entry["dtype"] != SAFETENSORS.get(DTYPE_NAMES[dtype], BYTES):
        raise corrupt(section, "bad entry")
    if len(shape) > MAX_DIMS + bare or any(d >= MAX_SIZE for d in shape) or (bare and shape.pop() != dtype.itemsize):
        raise corrupt(section, "bad shape")
    data = entry["data"]
    if hashlib.sha256(data).hexdigest() != held[1]:  # type: ignore[index]
        raise corrupt(section, "its sha256 differs")
    return torch.frombuffer(data, dtype=torch.uint8).view(dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)


def _dtype(held: object, section: str) -> torch.dtype:
    """That of a tensor, of what the program says of it: dtype and sha256."""
    if not isinstance(held, list) or len(held) != 2 or not all(isinstance(part, str) for part in held) or held[0] not in DTYPES:
        raise corrupt(section, "bad entry")
    dtype = DTYPES[held[0]]
    if not is_plain(dtype):
        raise corrupt(section, "bad dtype")
    return dtype
