"""The machine-readable part of a dump: run.json, and a line of passes.jsonl for each pass. Schemas: qcompiler/debug/schema/."""

from __future__ import annotations

import os
import platform
import zlib
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import fx

from qcompiler.compile.journal import PassRecord
from qcompiler.compile.pass_manager import Context
from qcompiler.ir.attributes import attribute
from qcompiler.ir.text import format_target
from qcompiler.ir.types import source_of
from qcompiler.raw import raw_bits

SCHEMA_VERSION = 1
SCHEMAS = Path(__file__).parent / "schema"
PRIVACY = (
    "Holds the model's code as a graph, names, shapes, source lines and the value ranges found in calibration; "
    "neither weights nor activations."
)
WITH_WEIGHTS = " repro.safetensors holds the model's weights and example inputs, as QCOMPILER_REPRO_WEIGHTS=1 asked."


def versions() -> dict[str, str]:
    """Of what a result can depend on."""
    try:
        own = version("qcompiler")
    except PackageNotFoundError:  # run from a source tree
        own = "unknown"
    return {"qcompiler": own, "torch": str(torch.__version__), "python": platform.python_version()}


def run(phase: str, model: str, context: Context, weights: bool) -> dict[str, Any]:
    """run.json; `id` is the same for a prepare and its converts."""
    target = context.target
    return {
        "schema_version": SCHEMA_VERSION,
        "id": context.journal.identity,
        "phase": phase,
        "model": model,
        "pid": os.getpid(),
        "versions": versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "target": {"backend": target.backend, **target.settings},
        "privacy": PRIVACY + (WITH_WEIGHTS if weights else ""),
    }


def resident_bytes() -> int | None:
    """Memory of this process; None where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


@dataclass
class State:
    """What of a graph is compared: its nodes by name, how often each op is called, checksums of its constants."""

    origins: dict[str, tuple[str, ...]]
    ops: Counter[str]
    constants: dict[str, int]
    sums: dict[tuple[int, int], tuple[Any, int]] = field(default_factory=dict)

    @staticmethod
    def of(gm: fx.GraphModule, before: State | None = None) -> State:
        """The state of a graph. A tensor that `before` has seen, and that did not change since, is not read again."""
        origins = {node.name: source_of(node).origin for node in gm.graph.nodes}
        ops = Counter(op_name(node) for node in gm.graph.nodes)
        state = State(origins, ops, {})
        known = before.sums if before is not None else {}
        for path in dict.fromkeys(str(n.target) for n in gm.graph.nodes if n.op == "get_attr"):
            value: Any = attribute(gm, path)
            if isinstance(value, torch.Tensor):
                key = (id(value), 0 if value.is_inference() else value._version)
                state.sums[key] = known.get(key) or (value, _checksum(value))  # holds the tensor, so that its id stays its own
                state.constants[path] = state.sums[key][1]
        return state

    def changed_constants(self, before: State) -> list[str]:
        return [path for path, value in self.constants.items() if before.constants.get(path, value) != value]


def op_name(node: fx.Node) -> str:
    return format_target(node.target) if node.op in ("call_function", "call_method") else node.op


def _checksum(tensor: torch.Tensor) -> int:
    if tensor.is_quantized or tensor.layout is not torch.strided or not tensor.numel():
        return 0
    raw: Any = raw_bits(tensor).numpy()
    return zlib.crc32(raw)


def line(seq: int, record: PassRecord, changed: bool, before: State, after: State, rss: int | None) -> dict[str, Any]:
    """One pass. Names are in the order of the graph; `replaced` maps a node to the dropped ones that it stands for."""
    removed = [name for name in before.origins if name not in after.origins]
    gone = set(removed)
    replaced = {name: [o for o in origin if o in gone] for name, origin in after.origins.items() if gone.intersection(origin)}
    delta = {op: after.ops[op] - before.ops[op] for op in sorted({*before.ops, *after.ops}) if after.ops[op] != before.ops[op]}
    now = resident_bytes()
    return {
        "schema_version": SCHEMA_VERSION,
        "seq": seq,
        "name": record.name,
        "changed": changed,
        "skipped": record.skipped,
        "ms": round(record.milliseconds, 3),
        "self_ms": round(record.milliseconds - record.verify_ms, 3),
        "rss_delta": None if now is None or rss is None else now - rss,
        "nodes_before": record.nodes_before,
        "nodes_after": record.nodes_after,
        "ops": delta,
        "added": [name for name in after.origins if name not in before.origins],
        "removed": removed,
        "replaced": replaced,
        "constants_changed": after.changed_constants(before),
        "matches": record.matches,
        "remarks": [remark.to_data() for remark in record.remarks],
    }
