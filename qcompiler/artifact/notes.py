"""What the compiler itself notes on a module that is saved, rows of explain, remarks, checksums: a schema, since a file holds anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qcompiler.artifact.graph_note import GRAPH
from qcompiler.executable.noted import LARGEST, ROWS
from qcompiler.files.faults import corrupt
from qcompiler.inputs.checks import MARK
from qcompiler.inputs.fingerprint import WEIGHTS
from qcompiler.ir.items import ITEMS

SAMPLE = "_qcompiler_sample"  # what its multiply-accumulates are counted for
REMARKS = "_qcompiler_remarks"  # those of qcompiler.remarks
PREFIX = "_qcompiler_"

ROW: Mapping[str, type] = {
    "node": str, "op": str, "module_path": str, "source": str, "int8": bool, "reason": str, "macs": int, "counted": bool, "mode": str,
    "code": str, "parameters": int, "corrected": str,
}  # fmt: skip
SAMPLE_FIELDS: Mapping[str, type] = {"count": int, "shape": str}
REMARK: Mapping[str, type] = {"pass": str, "code": str, "text": str}
REMARK_OPTIONAL: Mapping[str, type] = {"node": str, "path": str, "location": str}


def _fields(data: object, needed: Mapping[str, type], optional: Mapping[str, type]) -> bool:
    known = {**needed, **optional}
    return isinstance(data, dict) and needed.keys() <= data.keys() and all(k in known and type(v) is known[k] for k, v in data.items())


def _list(data: object, needed: Mapping[str, type], optional: Mapping[str, type]) -> bool:
    return isinstance(data, (list, tuple)) and all(_fields(item, needed, optional) for item in data)


def _checksums(data: object) -> bool:
    return isinstance(data, dict) and all(isinstance(k, str) and isinstance(v, str) for k, v in data.items())


def _containers(data: Any) -> bool:
    def item(value: Any) -> bool:
        whole = isinstance(value, (list, tuple)) and len(value) == 2 and value[0] in ("list", "dict")
        return whole and isinstance(value[1], (list, tuple)) and all(isinstance(key, str) for key in value[1])

    return isinstance(data, dict) and all(isinstance(path, str) and item(value) for path, value in data.items())


_HOLDS: Mapping[str, Callable[[object], bool]] = {
    MARK: lambda data: data == "converted",
    ROWS: lambda data: _list(data, {k: t for k, t in ROW.items() if k not in ("counted", "mode", "code", "parameters", "corrected")}, ROW),
    SAMPLE: lambda data: _fields(data, SAMPLE_FIELDS, {}) and isinstance(data, dict) and data["count"] > 0,
    LARGEST: lambda data: isinstance(data, dict) and all(type(k) is str and type(v) is int and 0 < v < 256 for k, v in data.items()),
    REMARKS: lambda data: _list(data, REMARK, REMARK_OPTIONAL),
    WEIGHTS: _checksums,
    ITEMS: _containers,
    GRAPH: lambda data: isinstance(data, dict) and type(data.get("version")) is int,  # all else is checked where it is read
}


def check_notes(attributes: Mapping[str, object]) -> None:
    """Raises ArtifactError for a note of the compiler's own that is not as the compiler writes it."""
    for name, holds in _HOLDS.items():
        if name in attributes and not holds(attributes[name]):
            raise corrupt("notes", f"{name} is not as it should be")
    unknown = next((name for name in attributes if name.startswith(PREFIX) and name not in _HOLDS), None)
    if unknown is not None:
        raise corrupt("notes", f"there is no note {unknown!r:.80}")
