"""What explain knows of a program's nodes, put beside them: int8 or float, multiply-accumulates, and why float."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from qcompiler.artifact.notes import SAMPLE
from qcompiler.debug.explain import Explanation, Row
from qcompiler.debug.op_steps import COMPUTE, STEP_OF, mark_steps
from qcompiler.executable.node_data import compact
from qcompiler.executable.noted import ROWS


def explain_nodes(nodes: Sequence[dict[str, Any]], explanation: Explanation) -> None:
    """Each row's node says what the row says; no other node is an op, whatever it is made of: calls that stand for one op are many.

    A row's node is the one of its name; where several ops became one call, such as a native layer, the one that names it as its origin.
    """
    layers = {name: node for node in nodes for name in node.get("computes", ())}
    origins = {} if layers else {name: node for node in nodes for name in node.get("origin", ())}
    named = {node["name"]: node for node in nodes}
    rows: dict[str, list[Row]] = {}
    for row in explanation.rows:
        node = layers.get(row.node) or named.get(row.node) or origins.get(row.node)
        if node is not None:
            rows.setdefault(node["name"], []).append(row)
    for node in nodes:
        _explain(node, rows.get(node["name"], []))
    mark_steps(nodes)


def explanation_on(module: nn.Module) -> Explanation:
    """What was noted on a converted module; no rows where nothing was."""
    return Explanation.from_data(getattr(module, ROWS, []), getattr(module, SAMPLE, None))


def _explain(node: dict[str, Any], rows: Sequence[Row]) -> None:
    node.pop(STEP_OF, None)
    if not rows:
        node["kind"] = "other" if node["kind"] in COMPUTE else node["kind"]
        node.pop("macs", None)
        return
    if len({row.int8 for row in rows if row.macs}) > 1:  # a whole region, whose layers are another stage
        return _explain(node, [])
    reasons, main = [row for row in rows if row.reason], max(reversed(rows), key=lambda row: row.macs)
    node |= compact({
        "kind": "int8" if main.int8 else "float",
        "macs": sum(row.macs for row in rows) or None,
        "reason": reasons[0].reason if reasons else None,
        "reason_code": reasons[0].code if reasons else None,
    })  # fmt: skip
