"""What explain knows of a program's nodes, put beside them: multiply-accumulates, and why float."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from qcompiler.debug.explain import Explanation
from qcompiler.executable.node_data import compact


def explain_nodes(nodes: Sequence[dict[str, Any]], explanation: Explanation) -> None:
    """Multiply-accumulates and the reason why float, from the rows that the module keeps: by line, module and op, in order."""
    rows: dict[Any, list[Any]] = {}
    for row in explanation.rows:
        file, _, line = row.source.rpartition(":")
        rows.setdefault((row.module_path, _base(file), line), []).append(row)
    for node in nodes:
        waiting = rows.get((node.get("path", ""), _base(node.get("file", "")), str(node.get("line", ""))), [])
        found = next((r for r in waiting if r.op in node["op"]), None) if node["kind"] in ("int8", "float") else None
        if found is not None:
            waiting.remove(found)
            node |= compact({"macs": found.macs or None, "reason": found.reason, "reason_code": found.code})


def _base(file: str) -> str:
    """A file's name without its folders: drawings shorten paths in ways of their own."""
    return re.split(r"[/\\]", file)[-1]
