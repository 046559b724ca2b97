"""Runs lists of passes: verifies before and after each, times it, collects remarks, tells instruments, names what fails."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import fx

from qcompiler.errors import PassError, QCompilerError, Where
from qcompiler.ir.provenance import inherit_sources
from qcompiler.ir.types import Stage
from qcompiler.ir.verify import verify, where
from qcompiler.ops.table import OPS, Table


@dataclass(frozen=True)
class Remark:
    """Something a person should know: what was not fused, stayed float, was made concrete, and why."""

    pass_name: str
    code: str
    text: str
    where: Where = field(default_factory=Where)


@dataclass
class Context:
    """What the passes of one compile share. `target` describes the back end's kernels (see backends/torch/target.py)."""

    table: Table = OPS
    mapping: Any = None
    module_types: dict[str, type] = field(default_factory=dict)
    target: Any = None
    rules: tuple[Any, ...] = ()
    used_rules: list[Any] = field(default_factory=list)
    strict: bool = False
    allow_uncalibrated: str = "error"
    remarks: list[Remark] = field(default_factory=list)
    records: list[PassRecord] = field(default_factory=list)

    def remark(self, pass_name: str, code: str, text: str, node: fx.Node | None = None) -> None:
        self.remarks.append(Remark(pass_name, code, text, where(node) if node is not None else Where()))


@dataclass(frozen=True)
class PassRecord:
    """What one pass did: its wall time in milliseconds and node counts."""

    name: str
    milliseconds: float
    nodes_before: int
    nodes_after: int
    changed: bool


class Pass(Protocol):
    """A step of the compiler. `stage` is the stage it leaves the graph in; `run` returns whether anything changed."""

    @property
    def name(self) -> str: ...

    @property
    def stage(self) -> Stage: ...

    def run(self, gm: fx.GraphModule, context: Context) -> bool: ...


class Instrument(Protocol):
    """Watches passes. An exception in an instrument is reported and changes no result."""

    def before(self, step: Pass, gm: fx.GraphModule, context: Context) -> None: ...

    def after(self, step: Pass, gm: fx.GraphModule, context: Context, record: PassRecord) -> None: ...


def _tell(instruments: Sequence[Instrument], event: str, context: Context, *args: Any) -> None:
    for instrument in instruments:
        try:
            getattr(instrument, event)(*args)
        except Exception as error:  # a debugging aid must never decide over the compile
            context.remarks.append(Remark("instrument", "instrument-failed", f"{type(instrument).__name__}.{event}: {error}"))


def run_passes(
    gm: fx.GraphModule,
    passes: Sequence[Pass],
    stage: Stage,
    context: Context,
    instruments: Sequence[Instrument] = (),
    *,
    recompile: bool = True,
) -> fx.GraphModule:
    """Takes `gm`, which stands at `stage`, through the passes in place; raises PassError with the pass and node that failed.

    `recompile`: make the code that runs `gm`; False where nobody runs it before it is changed further.
    """
    verify(gm, stage)
    for step in passes:
        _tell(instruments, "before", context, step, gm, context)
        nodes, start = len(gm.graph.nodes), time.perf_counter()
        try:
            changed = step.run(gm, context)
        except QCompilerError:
            raise
        except Exception as error:
            raise PassError(f"pass {step.name} failed: {type(error).__name__}: {error}", code="pass-failed") from error
        inherit_sources(gm.graph)
        verify(gm, step.stage, after=step.name)
        record = PassRecord(step.name, (time.perf_counter() - start) * 1e3, nodes, len(gm.graph.nodes), changed)
        context.records.append(record)
        _tell(instruments, "after", context, step, gm, context, record)
    if recompile:
        gm.recompile()
    return gm
