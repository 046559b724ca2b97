"""Saved files taken apart and put together again with all hashes right: what somebody who writes one by hand would do."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

from qcompiler.artifact import format_1

TABLE = "table"  # the entries of safetensors, beside the keys of the program
VERSION, PROGRAM, DIGEST = "qcompiler.format", "qcompiler.program", "qcompiler.sha256"


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The program, with the table of tensors under `table`, and what follows the header."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    program = json.loads(header.pop("__metadata__")[PROGRAM])
    return program | {TABLE: header}, data[8 + length :]


def whole(text: bytes, table: dict[str, Any], body: bytes, version: str = "2.0", **more: str) -> bytes:
    """A file of this program."""
    metadata = {"format": "pt", VERSION: version, PROGRAM: text.decode("ascii"), DIGEST: "0" * 64, **more}
    return hashed(json.dumps({"__metadata__": metadata, **table}, separators=(",", ":")).encode("ascii"), body)


def hashed(header: bytes, body: bytes) -> bytes:
    """A file of this header, its digest made right where it has one."""
    start, key = struct.pack("<Q", len(header)) + header, f'"{DIGEST}":"'.encode()
    if key not in start:
        return start + body
    at = start.index(key) + len(key)
    return start[:at] + hashlib.sha256(start).hexdigest().encode() + start[at + 64 :] + body


def changed(data: bytes, change: Callable[[Any], Any], **more: str) -> bytes:
    """The file with its program or table changed; bytes that `change` returns stand in the place of the program."""
    program, body = parts(data)
    text = change(program)
    table = program.pop(TABLE)
    return whole(text if isinstance(text, bytes) else json.dumps(program).encode("ascii"), table, body, **more)


def changed_1(data: bytes, change: Callable[[Any], Any]) -> bytes:
    """As `changed`, of a file of format 1."""
    magic, major, minor, zero, length, _ = format_1.PREFIX.unpack(data[: format_1.PREFIX.size])
    start = format_1.PREFIX.size
    header = json.loads(data[start : start + length])
    text = change(header)
    raw = text if isinstance(text, bytes) else json.dumps(header).encode()
    body = data[start + length + -(start + length) % format_1.ALIGN : -format_1.DIGEST]
    new = format_1.PREFIX.pack(magic, major, minor, zero, len(raw), hashlib.sha256(raw).digest()) + raw
    new += bytes(-len(new) % format_1.ALIGN) + body
    return new + hashlib.sha256(new).digest()
