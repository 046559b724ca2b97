"""explain: which ops run in int8, which stay float and why, and the share of multiply-accumulates in int8."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import fx, nn

from qcompiler.debug.fitted_table import Column, FittedTable, as_text
from qcompiler.debug.sample import UNKNOWN, Sample, sample_of, short_count
from qcompiler.ir.attributes import attribute
from qcompiler.ir.types import Mode, quant_of, source_of
from qcompiler.ops.macs import macs_of
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.table import Table
from qcompiler.passes.annotate import computes_float

STATEMENT = "float-statement"


@dataclass(frozen=True)
class Row:
    """One op of the model: int8 or float, why, its multiply-accumulates in one call with the example inputs.

    `mode`: how it uses quantized weights where it takes and gives floats ("int8 dynamic", "8-bit weights"). `counted` is False
    for a module that is called as a whole: what it computes is not known; `parameters` is the number of numbers in its parameters.
    `code`: why float, for programs (ops/obstacles.py). `corrected`: what corrections changed of it.
    """

    node: str
    op: str
    module_path: str
    source: str
    int8: bool
    reason: str
    macs: int
    counted: bool = True
    mode: str = ""
    code: str = ""
    parameters: int = 0
    corrected: str = ""

    @property
    def kind(self) -> str:
        """What it runs in."""
        return self.mode or ("int8" if self.int8 else "float")


@dataclass(frozen=True)
class Explanation:
    """The rows in the order of execution. `sample`: the inputs that multiply-accumulates are counted for."""

    rows: tuple[Row, ...]
    sample: Sample = UNKNOWN

    @property
    def int8_mac_share(self) -> float:
        """Share of multiply-accumulates that int8 kernels do, 0 to 1; nan for a model without any, where there is nothing to share."""
        total = self.macs
        return sum(row.macs for row in self.rows if row.int8) / total if total else math.nan

    @property
    def macs(self) -> int:
        """All multiply-accumulates that are counted, of one call with the example inputs."""
        return sum(row.macs for row in self.rows)

    @property
    def int8_ops(self) -> int:
        return sum(row.int8 for row in self.rows)

    @property
    def verdict(self) -> str:
        """How much runs in int8, in words: what every report says."""
        ops = f"{self.int8_ops} of {len(self.rows)} op{'s' * (len(self.rows) != 1)} in int8"
        if self.macs:
            return f"{self.int8_mac_share:.1%} of multiply-accumulates in int8"
        if self.rows and not any(row.counted for row in self.rows):
            return f"{ops}; multiply-accumulates not counted: no shapes are known here"
        return f"{ops}; nothing to multiply and accumulate"

    @property
    def work(self) -> str:
        """The multiply-accumulates and what they are counted for: `1.82 G per sample of 3x224x224`; empty where there are none."""
        return f"{short_count(self.macs / self.sample.count)} {self.sample}" if self.macs else ""

    def settled(self, floats: Iterable[tuple[str, Obstacle]], integers: Collection[str]) -> Explanation:
        """The rows where these nodes, by name, stay float after all, or are int8 after all: what passes of a back end decide."""
        left = dict(floats)
        rows = (replace(row, int8=False, mode="", reason=left[row.node].text, code=left[row.node].code) if row.node in left else row
                for row in self.rows)  # fmt: skip
        now_int8 = (replace(row, int8=True, reason="", code="") if row.node in integers else row for row in rows)
        return replace(self, rows=tuple(now_int8))

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Modules and functions that are called as a whole, and those with statements that run as they stand: what the share leaves out."""
        return tuple(dict.fromkeys(row.module_path or row.node for row in self.rows if not row.counted))

    def to_data(self) -> list[dict[str, object]]:
        return [asdict(row) for row in self.rows]

    @staticmethod
    def from_data(data: Iterable[dict[str, Any]], sample: Mapping[str, Any] | None = None) -> Explanation:
        return Explanation(tuple(Row(**row) for row in data), Sample.from_data(sample))

    def table(self) -> Any:
        """The rows for a rich console; it shows the columns that there is room for."""
        rows = self.rows
        colours = ["green" if row.int8 or row.mode else "yellow" for row in rows]
        return FittedTable(
            self._title(),
            [
                Column("node", [row.node for row in rows], rank=5, names=True),
                Column("op", [row.op for row in rows], rank=1, names=True),
                Column("module", [row.module_path or f"({row.node})" for row in rows], names=True),
                Column("runs in", [row.kind for row in rows], styles=colours),
                Column(f"MACs {self.sample.unit}", [self._macs(row) for row in rows], rank=4, right=True),
                Column("code", [row.code for row in rows], rank=3),
                Column("why float", [row.reason for row in rows], prose=True),
                Column("corrected", [row.corrected for row in rows], rank=2),
            ],
        )

    def _macs(self, row: Row) -> str:
        return "" if not row.counted else f"{round(row.macs / self.sample.count):,}" if row.macs else ""

    def _title(self) -> str:
        return f"{self.verdict}{f' ({self.work})' if self.work else ''}{self._left_out()}"

    def _left_out(self) -> str:
        """What the share says nothing about: how many modules, of how many parameters, and their names."""
        if not self.uncounted:
            return ""
        left_out = [row for row in self.rows if not row.counted]
        if len(left_out) == len(self.rows):
            return ""
        modules = {row.module_path or row.node: row for row in left_out if row.code != STATEMENT}
        statements = {row.node: row for row in left_out if row.code == STATEMENT}
        parts = [f"of {', '.join(modules)} ({_counted(modules, 'part', 'called as a whole')})"] if modules else []
        lines = list(dict.fromkeys(row.source.replace("\\", "/").rpartition("/")[2] for row in statements.values()))
        parts += [f"at {', '.join(lines)} ({_counted(statements, 'statement', 'run as they stand')})"] if statements else []
        return f", without those {' and those '.join(parts)}"

    def __str__(self) -> str:
        return as_text(self.table())


def _counted(rows: Mapping[str, Row], what: str, how: str) -> str:
    count, parameters = len(rows), sum(row.parameters for row in rows.values())
    how = how if count > 1 else how.replace("run as they stand", "run as it stands")
    return f"{count} {what}{'s' if count > 1 else ''} {how} with {parameters:,} parameters"


def explanation_of(graph: fx.Graph, table: Table) -> Explanation:
    """The rows of the ops of a graph that compute on floats, as annotated."""
    return Explanation(tuple(_row(node, table) for node in graph.nodes if is_decided(node)), sample_of(graph))


def is_decided(node: fx.Node) -> bool:
    """Whether it is an op of which is known that it runs in int8, or why not."""
    quant = quant_of(node)
    return node.op.startswith("call_") and (quant.int8 or quant.mode is not None or (bool(quant.reason) and computes_float(node)))


def is_int8(node: fx.Node) -> bool:
    """Whether an int8 kernel does its multiply-accumulates."""
    return quant_of(node).int8 or quant_of(node).mode is Mode.DYNAMIC


def _row(node: fx.Node, table: Table) -> Row:
    quant, source, op = quant_of(node), source_of(node), table.of(node)
    name = op.name if op is not None else getattr(node.target, "__name__", str(node.target))
    macs = macs_of(node, op)
    mode = quant.mode.value if quant.mode else ""
    reason = quant.reason or ""
    return Row(node.name, name, source.module_path, source.location or "", is_int8(node), reason, macs or 0, macs is not None, mode,
               quant.code or "", _parameters(node) if macs is None else 0, ", ".join(quant.corrected))  # fmt: skip


def _parameters(node: fx.Node) -> int:
    """How many numbers are in the parameters of a module that is called as a whole, or of what a statement reads."""
    owner = node.graph.owning_module
    if owner is None:
        return 0
    if node.op == "call_module":
        return sum(p.numel() for p in owner.get_submodule(str(node.target)).parameters())
    read = [attribute(owner, str(n.target)) for n in node.all_input_nodes if n.op == "get_attr"]
    tensors = [p for held in read for p in (held.parameters() if isinstance(held, nn.Module) else [held])]
    return sum(p.numel() for p in tensors if isinstance(p, nn.Parameter))
