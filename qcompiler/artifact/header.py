"""The program of a file that anybody may have written: parsed and checked before anything is allocated by it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from qcompiler.artifact.layout import FEATURES, HEADER, MAX_DEPTH, MAX_ENTRIES, SEVERAL_FORMS
from qcompiler.artifact.notes import check_notes
from qcompiler.errors import ArtifactVersionError
from qcompiler.files.faults import corrupt
from qcompiler.files.values import from_json


def parse(raw: bytes, section: str) -> dict[str, Any]:
    """JSON with every bound checked: entries, depth, duplicate keys, numbers."""

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
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
        raise corrupt(section, "too many entries")
    try:
        data = json.loads(raw.decode("ascii"), object_pairs_hook=pairs, parse_float=real, parse_constant=real)
        if _depth(data) > MAX_DEPTH:
            raise ValueError("nested too deep")
    except (ValueError, RecursionError) as error:
        raise corrupt(section, f"not JSON as it should be ({error!s:.100})") from None
    if not isinstance(data, dict):
        raise corrupt(section, "not an object")
    return data


def _depth(data: object) -> int:
    depth, level = 0, [data]
    while level := [v for v in level if isinstance(v, (dict, list))]:
        depth += 1
        level = [child for v in level for child in (v.values() if isinstance(v, dict) else v)]
    return depth


def check_program(header: dict[str, Any]) -> None:
    """Of what the compiler wrote itself: features, back end, attributes, which become values, and notes."""
    if sys.byteorder != "little":
        raise ArtifactVersionError(f"saved files are little endian; this machine is {sys.byteorder}")
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
        check_program(found[-1])
    return found
