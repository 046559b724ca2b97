"""The header of a file that anybody may have written: parsed and checked before anything is allocated by it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from qcompiler.artifact.layout import ALIGN, FEATURES, HEADER, MAX_DEPTH, MAX_DIMS, MAX_ENTRIES, MAX_TENSORS, SEVERAL_FORMS, Entry
from qcompiler.artifact.notes import check_notes
from qcompiler.errors import ArtifactVersionError
from qcompiler.executable.tensors import is_path
from qcompiler.files.dtypes import DTYPES
from qcompiler.files.faults import corrupt
from qcompiler.files.values import from_json


def parse_header(raw: bytes) -> dict[str, object]:
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
        raise corrupt("header", "too many entries")
    try:
        data = json.loads(raw.decode("ascii"), object_pairs_hook=pairs, parse_float=real, parse_constant=real)
        if _depth(data) > MAX_DEPTH:
            raise ValueError("nested too deep")
    except (ValueError, RecursionError) as error:
        raise corrupt("header", f"not JSON as it should be ({error!s:.100})") from None
    if not isinstance(data, dict):
        raise corrupt("header", "not an object")
    _compatible(data)
    return data


def _depth(data: object) -> int:
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
        raise corrupt("header", "bad features")
    unknown = [f for f in features if f not in FEATURES]
    if unknown:
        raise ArtifactVersionError(f"it needs {', '.join(unknown)!r:.200}, which this qcompiler lacks", hint="upgrade qcompiler")
    if not isinstance(header.setdefault("backend", "torch"), str):
        raise corrupt("header", "bad backend")
    try:
        header["attributes"] = {name: from_json(value) for name, value in header["attributes"].items()}
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise corrupt("attributes", repr(error)[:100]) from None
    check_notes(header["attributes"])


def payload_of(header: Mapping[str, object]) -> dict[str, object]:
    """What the back end wrote."""
    return {key: value for key, value in header.items() if key not in HEADER}


def further_forms(header: dict[str, Any]) -> list[dict[str, object]]:
    """The headers of the further forms of the call, as if each stood alone; what one leaves out is as in the first."""
    listed = header.get("forms", []) if SEVERAL_FORMS in header["features"] else []
    if not isinstance(listed, list) or (SEVERAL_FORMS in header["features"]) != bool(listed):
        raise corrupt("header", "bad call forms")
    found = []
    for item in listed:
        if not isinstance(item, dict) or "attributes" not in item or item.keys() - payload_of(header).keys() != {"attributes"}:
            raise corrupt("header", "bad call forms")
        found.append({**header, **item})
        _compatible(found[-1])
    return found


def entries_of(header: dict[str, object], room: int) -> list[Entry]:
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
        ok = ok and isinstance(shape, list) and len(shape) <= MAX_DIMS and all(type(d) is int and 0 <= d < 2**48 for d in shape)
    except (TypeError, ValueError):
        ok = False
    if not ok:
        raise corrupt("tensor table", "bad entry")
    entry = Entry(name, DTYPES[dtype], tuple(shape), offset, size, digest)
    if entry.dtype.is_complex or str(entry.dtype).startswith(("torch.q", "torch.bits")):
        raise corrupt(entry.section, "bad dtype")
    if math.prod(shape) * entry.dtype.itemsize != size:
        raise corrupt(entry.section, f"{size} bytes do not hold shape {shape}")
    return entry
