"""explain: which ops run in int8, which stay float and why, and the share of multiply-accumulates in int8."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import fx, nn

from qcompiler.debug.fitted_table import Column, FittedTable, as_text
from qcompiler.ir.attributes import attribute
from qcompiler.ir.types import Mode, quant_of, source_of
from qcompiler.ops.macs import float_macs
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.table import Table
from qcompiler.passes.annotate import computes_float

STATEMENT = "float-statement"


@dataclass(frozen=True)
class Row:
    """One op of the model: int8 or float, why, its multiply-accumulates with the example inputs.

    `mode`: how it uses quantized weights where it takes and gives floats ("int8 dynamic", "8-bit weights"). `counted` is False
    for a module that is called as a whole: what it computes is not known; `parameters` is the number of numbers in its parameters.
    `code`: why float, for programs (ops/obstacles.py).
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

    @property
    def kind(self) -> str:
        """What it runs in."""
        return self.mode or ("int8" if self.int8 else "float")


@dataclass(frozen=True)
class Explanation:
    """The rows in the order of execution."""

    rows: tuple[Row, ...]

    @property
    def int8_mac_share(self) -> float:
        """Share of multiply-accumulates that int8 kernels do, 0 to 1; 1 for a model without any."""
        total = sum(row.macs for row in self.rows)
        return sum(row.macs for row in self.rows if row.int8) / total if total else 1.0

    def without(self, floats: Iterable[tuple[str, Obstacle]]) -> Explanation:
        """The rows where these nodes, by name, stay float after all: what passes of a back end decide."""
        left = dict(floats)
        return Explanation(tuple(replace(row, int8=False, mode="", reason=left[row.node].text, code=left[row.node].code)
                                 if row.node in left else row for row in self.rows))  # fmt: skip

    @property
    def uncounted(self) -> tuple[str, ...]:
        """The modules that are called as a whole, or have statements that run as they stand: the share leaves out what these multiply."""
        return tuple(dict.fromkeys(row.module_path for row in self.rows if not row.counted))

    def to_data(self) -> list[dict[str, object]]:
        return [asdict(row) for row in self.rows]

    @staticmethod
    def from_data(data: Iterable[dict[str, Any]]) -> Explanation:
        return Explanation(tuple(Row(**row) for row in data))

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
                Column("MACs", [f"{row.macs:,}" if row.macs else "" for row in rows], rank=4, right=True),
                Column("code", [row.code for row in rows], rank=3),
                Column("why float", [row.reason for row in rows], prose=True),
            ],
        )

    def _title(self) -> str:
        if self.rows and not any(row.counted for row in self.rows):
            return "multiply-accumulates not counted: no shapes are known here"
        return f"{self.int8_mac_share:.1%} of multiply-accumulates in int8{self._left_out()}"

    def _left_out(self) -> str:
        """What the share says nothing about: how many modules, of how many parameters, and their names."""
        if not self.uncounted:
            return ""
        left_out = [row for row in self.rows if not row.counted]
        modules = {row.module_path: row for row in left_out if row.code != STATEMENT}
        statements = {row.node: row for row in left_out if row.code == STATEMENT}
        parts = [f"of {', '.join(modules)} ({_counted(modules, 'module', 'called as a whole')})"] if modules else []
        lines = list(dict.fromkeys(row.source.replace("\\", "/").rpartition("/")[2] for row in statements.values()))
        parts += [f"at {', '.join(lines)} ({_counted(statements, 'statement', 'run as they stand')})"] if statements else []
        return f", without those {' and those '.join(parts)}"

    def __str__(self) -> str:
        return as_text(self.table())


def _counted(rows: Mapping[str, Row], what: str, how: str) -> str:
    count, parameters = len(rows), sum(row.parameters for row in rows.values())
    how = how if count > 1 else how.replace("run as they stand", "run as it stands")
    return f"{count} {what}{'s' if count > 1 else ''} {how} with {parameters:,} parameters"


def rows_of(nodes: Iterable[fx.Node], table: Table) -> Explanation:
    """The rows of the ops among `nodes` that compute on floats, as annotated."""
    return Explanation(tuple(_row(node, table) for node in nodes if _is_annotated(node)))


def _is_annotated(node: fx.Node) -> bool:
    quant = quant_of(node)
    return node.op.startswith("call_") and (quant.int8 or quant.mode is not None or (bool(quant.reason) and computes_float(node)))


def _row(node: fx.Node, table: Table) -> Row:
    quant, source, op = quant_of(node), source_of(node), table.of(node)
    name = op.name if op is not None else getattr(node.target, "__name__", str(node.target))
    macs = (op.macs(node) if op.macs is not None else 0) if op is not None else float_macs(node)
    mode, int8 = quant.mode.value if quant.mode else "", quant.int8 or quant.mode is Mode.DYNAMIC
    return Row(node.name, name, source.module_path, source.location or "", int8, quant.reason or "", macs or 0, macs is not None, mode,
               quant.code or "", _parameters(node) if macs is None else 0)  # fmt: skip


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
