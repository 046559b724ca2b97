"""Files for Google's Model Explorer: the graph, and one file of node data for each overlay."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qcompiler.debug.document import Document, Node
from qcompiler.debug.sample import Sample
from qcompiler.viz.boxes import parts_of
from qcompiler.viz.colors import color_at
from qcompiler.viz.labels import plain, short_op

GRADIENT = [{"stop": stop, "bgColor": color_at(stop)} for stop in (0, 0.5, 1)]


def to_graph(document: Document) -> dict[str, object]:
    """A graph collection: the last stage first, then the last of each earlier phase and the input."""
    ends = {stage["phase"]: i for i, stage in enumerate(document.stages)}
    stages = sorted({0, *ends.values()})[::-1]
    graphs = [{"id": _graph_id(document, i), "nodes": [_node(n, document.sample) for n in document.nodes_at(i)]} for i in stages]
    return {"label": plain(document.title, 200), "graphs": graphs}


def to_node_data(document: Document) -> dict[str, dict[str, object]]:
    """Node data by title: what `Add node data` takes. The SQNR of the numerics is one."""
    last = len(document.stages) - 1
    measured = {name: entry["sqnr"] for name, entry in document.numerics.items() if (entry or {}).get("sqnr") is not None}
    titled = {**({"sqnr": measured} if measured else {}), **document.overlays}
    return {title: {_graph_id(document, last): _data(values)} for title, values in titled.items()}


def dump(data: object) -> str:
    return json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False) + "\n"


def _graph_id(document: Document, index: int) -> str:
    return f"{index:02d} {plain(document.stages[index]['name'], 100)}"


def _data(values: Mapping[str, object]) -> dict[str, object]:
    return {"results": {name: {"value": value} for name, value in values.items() if value is not None}, "gradient": GRADIENT}


def _node(node: Node, sample: Sample) -> dict[str, object]:
    tensor = f"{node.get('dtype', '')}{node.get('shape', '')}"
    made: dict[str, Any] = {
        "id": node["name"],
        "label": plain(short_op(node["op"]), 100),
        "namespace": "/".join(plain(part).replace("/", "_") for part in parts_of(node)),
        "attrs": [{"key": key, "value": plain(value, 200)} for key, value in _attributes(node, sample)],
        "incomingEdges": [
            {"sourceNodeId": name, "sourceNodeOutputId": "0", "targetNodeInputId": str(i)} for i, name in enumerate(node["in"])
        ],
    }
    if tensor:
        made["outputsMetadata"] = [{"id": "0", "attrs": [{"key": "tensor_shape", "value": tensor}]}]
    return made


def _attributes(node: Node, sample: Sample) -> list[tuple[str, Any]]:
    q = node.get("q") or {}
    source = f"{node['file']}:{node.get('line')}" if node.get("file") else None
    found = {"op": node["op"], "kind": node["kind"], "step of": node.get("step_of"), "arguments": node.get("attrs"),
             "class": node.get("cls"), "source": source,
             "origin": ", ".join(node.get("origin", [])), "why float": node.get("reason"), "scale": q.get("scale"),
             "zero point": q.get("zero_point"),
             f"MACs {sample.unit}": node["macs"] / sample.count if "macs" in node else None, "parameters": node.get("params")}  # fmt: skip
    return [(key, value) for key, value in found.items() if value not in (None, "")]
