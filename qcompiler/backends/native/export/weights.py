"""The weights file of an exported network: one header, then the blocks that the C reads where they lie."""

from __future__ import annotations

import ctypes
import hashlib
import struct
from dataclasses import dataclass

from qcompiler.backends.native.region import NativeRegion

MAGIC = b"QCWEIGHT"
HEAD = struct.Struct("<8sQQIII28x")  # magic, which network, bytes of data, counts of integers, reals, doubles; 64 bytes


@dataclass(frozen=True)
class Weights:
    """`network`: a number by which the C knows that the file is its own."""

    content: bytes
    network: int


def weights_of(region: NativeRegion) -> Weights:
    """64 bytes of header, data, doubles, integers, reals; all little-endian."""
    constants, values = region.source.constants, region.values
    data = ctypes.string_at(values.data, constants.size) if constants.size else b""
    network = int.from_bytes(hashlib.sha256(region.source.text.encode()).digest()[:8], "little")
    head = HEAD.pack(MAGIC, network, len(data), len(constants.integers), len(constants.reals), len(constants.doubles))
    doubles = struct.pack(f"<{len(constants.doubles)}d", *constants.doubles)
    integers = struct.pack(f"<{len(constants.integers)}i", *constants.integers)
    reals = struct.pack(f"<{len(constants.reals)}f", *constants.reals)
    return Weights(head + data + doubles + integers + reals, network)
