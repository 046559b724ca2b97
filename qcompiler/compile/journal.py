"""What is told of a compile: remarks for people, a record of each pass, and the optional rewrites by number."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from qcompiler.compile.gate import allow
from qcompiler.errors import Where
from qcompiler.ir.types import quant_of
from qcompiler.ir.verify import where
from qcompiler.ops.obstacles import Obstacle


@dataclass(frozen=True)
class Remark:
    """Something a person should know: what was not fused, stayed float, was made concrete, and why. `node` is its name."""

    pass_name: str
    code: str
    text: str
    where: Where = field(default_factory=Where)
    node: str | None = None

    def to_data(self) -> dict[str, object]:
        """JSON data; what is not known is left out."""
        place = {"node": self.node, "path": self.where.module_path, "location": self.where.source}
        return {"pass": self.pass_name, "code": self.code, "text": self.text, **{k: v for k, v in place.items() if v}}

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> Remark:
        """What `to_data` wrote."""
        node = data.get("node")
        place = Where(f"%{node}" if node else None, data.get("path"), data.get("location"))
        return Remark(data["pass"], data["code"], data["text"], place, node)


@dataclass(frozen=True)
class PassRecord:
    """What one pass did: wall time in milliseconds (`verify_ms` of it went into the verifier), node counts, rewrites, remarks."""

    name: str
    milliseconds: float
    nodes_before: int
    nodes_after: int
    changed: bool
    verify_ms: float = 0.0
    matches: int = 0
    remarks: tuple[Remark, ...] = ()
    skipped: bool = False


@dataclass
class Journal:
    """What passes noted, in order. `rewrites` lists the optional rewrites that were offered, `matches` counts those that were done.

    `floats` lists, by name, the nodes that were decided to be quantized and stay float all the same, with the reason; `integers` those that
    were decided to stay float and move codes all the same. `identity` is
    common to a prepare and its converts, each of which goes on in a copy of its own (`continued`).
    """

    remarks: list[Remark] = field(default_factory=list)
    records: list[PassRecord] = field(default_factory=list)
    rewrites: list[str] = field(default_factory=list)
    matches: int = 0
    floats: list[tuple[str, Obstacle]] = field(default_factory=list)
    integers: list[str] = field(default_factory=list)
    identity: str = field(default_factory=lambda: secrets.token_hex(8))

    def continued(self) -> Journal:
        """A copy to go on in; this one stays as it is."""
        return replace(self, remarks=list(self.remarks), records=list(self.records), rewrites=list(self.rewrites), floats=list(self.floats),
                       integers=list(self.integers))  # fmt: skip

    def remark(self, by: str, code: str, text: str, node: fx.Node | None = None) -> None:
        """Notes a remark of the pass `by`, with the place of the node."""
        place = where(node) if node is not None else Where()
        self.remarks.append(Remark(by, code, text, place, node.name if node is not None else None))

    def remark_float(self, by: str, node: fx.Node) -> None:
        """The remark of the pass `by` that a node stays float; its code is the obstacle's."""
        self.remark(by, quant_of(node).code or "stays-float", f"stays float: {quant_of(node).reason}", node)

    def offer(self, rewrite: str) -> bool:
        """Numbers an optional rewrite; whether the gate of the compile lets it be done."""
        self.rewrites.append(rewrite)
        return allow(rewrite)
