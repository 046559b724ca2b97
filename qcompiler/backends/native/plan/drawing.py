"""The plan as nodes of a graph document: in the place of each run of a region stand its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcompiler.backends.native.plan.rows import Row, settings, spelled, times
from qcompiler.backends.native.steps import Place
from qcompiler.executable.node_data import clipped, compact, rounded

Node = dict[str, Any]
KINDS = {"quantize": "quantize", "dequantize": "dequantize"}
VIEWS = "view"  # what a layer without a kernel is


@dataclass(frozen=True)
class Planned:
    """One region. `places`: of the user's; `computes`: the ops of each layer."""

    rows: Sequence[Row]
    places: Mapping[str, Place]
    computes: Mapping[str, tuple[str, ...]]


def planned_nodes(nodes: Sequence[Node], regions: Sequence[Planned]) -> list[Node]:
    """`nodes`, in which each run of a region, and what takes its results apart, give way to the region's layers; its pack goes.

    `regions`: in the order of the runs. A layer is an op where it computes some; which kind, and how much, `explain` knows.
    """
    waiting, packed = iter(regions), _packed(nodes)
    runs = {node["name"] for node in nodes if node["op"].endswith("run_region")}
    found: list[Node] = []
    for node in nodes:
        if node["name"] in runs:
            found += _layers(next(waiting), [name for name in node["in"] if name not in packed])
        elif node["name"] not in packed and not runs.intersection(node["in"]):
            found.append(node)
    return [{**node, "after": found[i - 1]["name"] if i else None} for i, node in enumerate(found)]


def _packed(nodes: Sequence[Node]) -> set[str]:
    """The packs of regions, and the constants that they alone read."""
    packs = {node["name"] for node in nodes if node["kind"] == "pack" and str(node["op"]).endswith("native_region")}
    read = {name for node in nodes if node["name"] not in packs for name in node["in"]}
    taken = {name for node in nodes if node["name"] in packs for name in node["in"]}
    return packs | (taken - read)


def _layers(region: Planned, given: Sequence[str]) -> Iterator[Node]:
    """`given`: the nodes whose values the region takes, in order."""
    made = {row.layer.out for row in region.rows}
    outside = dict(zip(dict.fromkeys(name for row in region.rows for name in row.layer.reads if name not in made), given, strict=False))
    for row in region.rows:
        reads = dict.fromkeys(name if name in made else outside.get(name) for name in row.layer.reads)
        yield _node(row, [name for name in reads if name is not None], region)


def _node(row: Row, reads: list[str], region: Planned) -> Node:
    name, kernel = row.layer.out, row.kernels[0] if row.kernels else VIEWS
    place, ops = region.places.get(name), region.computes.get(name, ())
    file, _, line = (place.line if place is not None else "").rpartition(":")
    codes = getattr(row.layer, "codes", None)
    whole = not isinstance(row.shape, tuple) or (bool(row.shape) and isinstance(row.shape[0], tuple))
    weight = getattr(row.layer, "weight", None)
    fields = {
        "op": f"native.{kernel}",
        "kind": "int8" if ops else KINDS.get(kernel, "other"),
        "attrs": clipped(settings(row.layer)),
        "path": place.path if place is not None else "",
        "file": file,
        "line": int(line) if line.isdigit() else None,
        "shape": None if whole else list(row.shape),
        "dtype": None if whole else str(row.layer.dtype).removeprefix("torch.") if row.given else "uint8",
        "origin": list(place.origin) if place is not None else [name],
        "q": None if codes is None or row.given else {"scale": rounded(codes.scale), "zero_point": codes.zero, "min": codes.low,
                                                     "max": codes.high, "dtype": "uint8", "axis": None},
        "params": weight.numel() if weight is not None else None,
        "computes": list(ops),
        "plan": _plan(row),
        "text": f"%{name} = {settings(row.layer)}: {spelled(row.shape)}",
    }  # fmt: skip
    return {"name": name, "after": None, "in": reads, **compact(fields)}


def _plan(row: Row) -> dict[str, object]:
    """What the page shows of a layer beside its node."""
    return compact({
        "layer": f"layer_{row.number}" if row.number is not None else None,
        "kernels": list(row.kernels),
        "buffer": row.buffer,
        "offset": row.offset,
        "bytes": row.bytes,
        "halo": times(row.halo) if row.halo else "",
        "within": row.whole,
        "place": "a tensor of the caller" if row.given else "",
    })  # fmt: skip
