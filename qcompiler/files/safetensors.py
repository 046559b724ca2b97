"""The safetensors format, read and written: a little-endian u64, that many bytes of JSON, then raw data."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from qcompiler.errors import ArtifactError, ConfigError
from qcompiler.files.dtypes import DTYPES

SAFETENSORS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def safetensors(tensors: dict[str, torch.Tensor]) -> Iterator[bytes]:
    """A safetensors file in chunks; sorted, so the same tensors give the same bytes."""
    entries: dict[str, Any] = {}
    end = 0
    raws = []
    for name, tensor in sorted(tensors.items()):
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind not in SAFETENSORS:
            raise ConfigError(f"{name!r} is a {kind} tensor, which a weights file cannot hold", code="export")
        flat = tensor.detach().contiguous().reshape(-1)
        raws.append(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        entries[name] = {"dtype": SAFETENSORS[kind], "shape": list(tensor.shape), "data_offsets": [end, end + len(raws[-1])]}
        end += len(raws[-1])
    header = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode("ascii")
    header += b" " * (-len(header) % 8)
    yield struct.pack("<Q", len(header)) + header
    yield from raws


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that `safetensors` wrote. ArtifactError where it is damaged."""
    kinds = {short: DTYPES[name] for name, short in SAFETENSORS.items()}
    data = bytearray(path.read_bytes())
    try:
        size = int.from_bytes(data[:8], "little")
        entries = json.loads(data[8 : 8 + size])
        return {name: _tensor(data, 8 + size, entry, kinds) for name, entry in entries.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ArtifactError(f"{path}: not a safetensors file: {error!s:.200}", code="artifact-corrupt") from None


def _tensor(data: bytearray, start: int, entry: Any, kinds: dict[str, torch.dtype]) -> torch.Tensor:
    begin, end = entry["data_offsets"]
    raw = torch.empty(0, dtype=torch.uint8)
    if end > begin:
        raw = torch.frombuffer(data, dtype=torch.uint8, offset=start + begin, count=end - begin)
    return raw.clone().view(kinds[entry["dtype"]]).reshape(entry["shape"])  # a copy: kernels want aligned memory
