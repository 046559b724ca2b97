"""The weights file of an exported network: one header, then the blocks that the C reads where they lie."""

from __future__ import annotations

import ctypes
import hashlib
import struct
import zlib
from dataclasses import dataclass

from qcompiler.backends.native.region import NativeRegion

MAGIC = b"QCWEIGHT"
HEAD = struct.Struct("<8sQQIIII24x")  # magic, which network, bytes of data, counts of integers, reals, doubles, CRC-32; 64 bytes


@dataclass(frozen=True)
class Weights:
    """`network`: a number by which the C knows that the file is its own. `data`: bytes of packed weights. `counts`: of integers, reals and
    doubles."""

    content: bytes
    network: int
    data: int
    counts: tuple[int, int, int]


def weights_of(region: NativeRegion, fingerprint: str) -> Weights:
    """64 bytes of header, data, doubles, integers, reals; all little-endian. `fingerprint`: of what the weights are made for."""
    constants, values = region.source.constants, region.values
    data = ctypes.string_at(values.data, constants.size) if constants.size else b""
    network = int.from_bytes(hashlib.sha256(fingerprint.encode()).digest()[:8], "little")
    doubles = struct.pack(f"<{len(constants.doubles)}d", *constants.doubles)
    integers = struct.pack(f"<{len(constants.integers)}i", *constants.integers)
    reals = struct.pack(f"<{len(constants.reals)}f", *constants.reals)
    block = b"".join((data, doubles, integers, reals))
    counts = len(constants.integers), len(constants.reals), len(constants.doubles)
    return Weights(HEAD.pack(MAGIC, network, len(data), *counts, zlib.crc32(block)) + block, network, len(data), counts)
