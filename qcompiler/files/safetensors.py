"""The safetensors format: a little-endian u64, that many bytes of JSON, then raw data. Read by its library.

Written here: the library's writer puts metadata in another order each time, and holds a second copy of all tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from qcompiler.errors import ArtifactError, ConfigError
from qcompiler.files.dtypes import DTYPE_NAMES
from qcompiler.raw import raw_bits

# What every release of the library that pyproject.toml allows has a name for.
SAFETENSORS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
METADATA = "__metadata__"  # the header's key that is no tensor
BYTES = "U8"  # as which a tensor of any other dtype lies, its bytes along a last dimension


def safetensors(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    """A safetensors file in chunks; the same tensors give the same bytes. Raises ConfigError for a dtype that has no name there."""
    for name, tensor in tensors.items():
        if DTYPE_NAMES[tensor.dtype] not in SAFETENSORS:
            raise ConfigError(f"{name!r} is a {DTYPE_NAMES[tensor.dtype]} tensor, which a weights file cannot hold", code="export")
    table = table_of(tensors)
    yield framed(table)
    for name in table:
        yield raw_of(tensors[name])


def table_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, object]]:
    """The entries of a header, in the order in which the tensors lie: those of large numbers first, so that each is aligned to its numbers.

    Raises ConfigError for names that the format cannot spell.
    """
    entries: dict[str, dict[str, object]] = {}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        if name == METADATA or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ConfigError(f"a tensor cannot be called {name!a:.200} in a file", code="save", hint="rename it in the model")
        kind, shape, size = SAFETENSORS.get(DTYPE_NAMES[tensor.dtype]), list(tensor.shape), tensor.numel() * tensor.dtype.itemsize
        if kind is None:
            kind, shape = BYTES, [*shape, tensor.dtype.itemsize]
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return entries


def framed(header: Mapping[str, object]) -> bytes:
    """The header as it stands in a file, with its length in front and spaces behind, so that the tensors begin at a multiple of 8."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def raw_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, in C order."""
    raw: Any = raw_bits(tensor).numpy()
    return memoryview(raw) if raw.size else memoryview(b"")


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file. ArtifactError where it is damaged."""
    try:
        return load(path.read_bytes())
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ArtifactError(f"{path}: not a safetensors file: {error!s:.200}", code="artifact-corrupt") from None
