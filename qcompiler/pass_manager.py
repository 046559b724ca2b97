"""Runs lists of passes: verifies before and after each, times it, collects remarks, tells instruments, names what fails."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import fx

from qcompiler.errors import PassError, QCompilerError, Where
from qcompiler.gate import allow
from qcompiler.ir.provenance import inherit_sources
from qcompiler.ir.types import QUANT, Stage, quant_of
from qcompiler.ir.verify import where
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.table import OPS, Table
from qcompiler.rewrite import Rule, run_rules
from qcompiler.stages.verify import verify
from qcompiler.target import Neutral, Target

HOW_TO_REPRODUCE = "set QCOMPILER_DEBUG=folder and run again: it writes repro.py, which shows this failure without your model"


@dataclass(frozen=True)
class Remark:
    """Something a person should know: what was not fused, stayed float, was made concrete, and why. `node` is its name."""

    pass_name: str
    code: str
    text: str
    where: Where = field(default_factory=Where)
    node: str | None = None

    def to_data(self) -> dict[str, Any]:
        """JSON data; what is not known is left out."""
        place = {"node": self.node, "path": self.where.module_path, "location": self.where.source}
        return {"pass": self.pass_name, "code": self.code, "text": self.text, **{k: v for k, v in place.items() if v}}

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> Remark:
        """What `to_data` wrote."""
        node = data.get("node")
        place = Where(f"%{node}" if node else None, data.get("path"), data.get("location"))
        return Remark(data["pass"], data["code"], data["text"], place, node)


@dataclass
class Context:
    """What the passes of one compile share. `target` answers for the back end.

    `identity` is common to a prepare and its converts. `rewrites` lists the optional rewrites that were offered, `matches`
    counts those that were done; a convert goes on where its prepare ended. `trains`: the graph is prepared to be trained.
    """

    table: Table = OPS
    mapping: Any = None
    module_types: dict[str, type] = field(default_factory=dict)
    target: Target = field(default_factory=Neutral)
    rules: tuple[Any, ...] = ()
    used_rules: list[Any] = field(default_factory=list)
    strict: bool = False
    custom: Any = None  # a PrepareCustomConfig
    backend_config: Any = None  # a BackendConfig: what it does not name stays float
    quantized_classes: Mapping[type, type] = field(default_factory=dict)  # of custom modules, by their observed class
    trains: bool = False
    allow_uncalibrated: str = "error"
    remarks: list[Remark] = field(default_factory=list)
    records: list[PassRecord] = field(default_factory=list)
    identity: str = field(default_factory=lambda: secrets.token_hex(8))
    instruments: tuple[Any, ...] = ()
    step: Any = None  # the pass that runs
    stage: Stage = Stage.TRACED  # where the graph stands
    rewrites: list[str] = field(default_factory=list)
    matches: int = 0
    example: Any = None  # (args, kwargs) of one call, on which a back end checks its kernels

    def remark(self, pass_name: str, code: str, text: str, node: fx.Node | None = None) -> None:
        place = where(node) if node is not None else Where()
        self.remarks.append(Remark(pass_name, code, text, place, node.name if node is not None else None))

    def remark_float(self, by: str, node: fx.Node) -> None:
        """The remark of the pass `by` that a node stays float; its code is the obstacle's."""
        self.remark(by, quant_of(node).code or "stays-float", f"stays float: {quant_of(node).reason}", node)

    def keep_float(self, by: str, node: fx.Node, why: Obstacle) -> None:
        """Makes a quantized node float, with a remark of the pass `by`."""
        node.meta[QUANT] = quant_of(node).with_(int8=False, mode=None, float_output=False, reason=why.text, code=why.code)
        self.remark_float(by, node)

    def needs_7_bits(self, values: Sequence[fx.Node]) -> bool:
        """Whether the kernel of an op that takes one of these values, maybe behind its observer, could overflow at 8 bits."""
        direct = [user for value in values for user in value.users]
        takers = [*direct, *(u for user in direct if user.op == "call_module" for u in user.users)]
        rows = ((user, self.table.of(user)) for user in takers if quant_of(user).int8)
        return any(row is not None and row.macs is not None and self.target.activation_bits(row, user) < 8 for user, row in rows)

    def allows(self, rewrite: str, node: fx.Node | None = None) -> bool:
        """Whether an optional rewrite may be done: the gate of the compile numbers the questions and answers them."""
        name = self.step.name if self.step is not None and self.step.name != rewrite else ""
        self.rewrites.append(f"{name}: {rewrite}".removeprefix(": ") + (f" at %{node.name}" if node is not None else ""))
        return allow(self.rewrites[-1])

    def apply_rules(self, gm: fx.GraphModule, rules: Sequence[Rule]) -> int:
        """Runs rewrite rules to their fixpoint and returns how often one fired; each refused candidate becomes a remark."""
        fired, refused = run_rules(gm, rules, self.table, lambda rule, node: self.allows(rule.name, node))
        for rejection in refused:
            self.remark(self.step.name if self.step else "rules", rejection.code, f"{rejection.rule}: {rejection.reason}", rejection.node)
        count = sum(fired.values())
        self.matches += count
        return count


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


class Pass(Protocol):
    """A step of the compiler. `stage` is the stage it leaves the graph in; `run` returns whether anything changed.

    `required`: later passes stand on it, so no instrument can skip it. A pass without the attribute is optional. An optional
    pass is one numbered rewrite, unless it has `per_match = True` and asks `context.allows` for each rewrite itself.
    """

    @property
    def name(self) -> str: ...

    @property
    def stage(self) -> Stage: ...

    @property
    def required(self) -> bool: ...

    def run(self, gm: fx.GraphModule, context: Context) -> bool: ...


class PassInstrument:
    """Watches a compile: override what you need. An exception in an instrument becomes a remark and changes no result.

    The order of a compile: start; for each pass should_run (optional passes), before, after or on_error; finish, also after an
    error. Any object that has some of these methods will do. Single rewrites are held back by a qcompiler.debug.Gate.
    """

    def start(self, phase: str, model: str, context: Context) -> Any:
        """Called once a compile; returns the instrument that watches it, for instance one with state of its own."""
        return self

    def should_run(self, step: Pass, gm: fx.GraphModule, context: Context) -> bool:
        """False skips an optional pass. Not asked for required ones."""
        return True

    def before(self, step: Pass, gm: fx.GraphModule, context: Context) -> None:
        """The graph as the pass will see it."""

    def after(self, step: Pass, gm: fx.GraphModule, context: Context, record: PassRecord) -> None:
        """The verified graph behind the pass (or unchanged, where record.skipped)."""

    def on_error(self, step: Pass, gm: fx.GraphModule, context: Context, error: QCompilerError) -> None:
        """The pass failed and left the graph in any state; `error` will be raised."""

    def finish(self, context: Context) -> None:
        """The compile is over."""


Instrument = PassInstrument


def _hooks(instruments: Sequence[Any], event: str, context: Context) -> Iterator[Callable[..., Any]]:
    """The instruments' methods of that name, each such that an exception becomes a remark: an aid must not decide over a compile."""

    def guarded(instrument: Any, hook: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            try:
                return hook(*args)
            except Exception as error:
                text = f"{type(instrument).__name__}.{event}: {type(error).__name__}: {error}"
                remark = Remark("instrument", "instrument-failed", text)
                if remark not in context.remarks:
                    context.remarks.append(remark)
                return None

        return call

    for instrument in instruments:
        hook = getattr(instrument, event, None)
        if hook is not None:
            yield guarded(instrument, hook)


def tell(instruments: Sequence[Any], event: str, context: Context, *args: Any) -> list[Any]:
    """Calls one method of every instrument that has it; None stands for an answer that failed."""
    return [hook(*args) for hook in _hooks(instruments, event, context)]


def run_passes(
    gm: fx.GraphModule,
    passes: Sequence[Pass],
    stage: Stage,
    context: Context,
    instruments: Sequence[Any] = (),
    *,
    recompile: bool = True,
) -> fx.GraphModule:
    """Takes `gm`, which stands at `stage`, through the passes in place; raises PassError with the pass and node that failed.

    `instruments` watch beside those of the context. `recompile`: make the code that runs `gm`; False where nobody runs it
    before it is changed further.
    """
    outer = context.instruments
    context.instruments = (*outer, *instruments)
    try:
        verify(gm, stage, table=context.table)
        context.stage = stage
        for step in passes:
            context.step = step
            context.records.append(_run(step, gm, context))
            context.stage = step.stage
        if recompile:
            gm.recompile()
    finally:
        context.instruments, context.step = outer, None
    return gm


def _run(step: Pass, gm: fx.GraphModule, context: Context) -> PassRecord:
    wanted = _wanted(step, gm, context)
    if not wanted:
        context.remark(step.name, "pass-skipped", "this optional pass did not run: an instrument or QCOMPILER_BISECT held it back")
    tell(context.instruments, "before", context, step, gm, context)
    nodes, matches, remarks = len(gm.graph.nodes), context.matches, len(context.remarks)
    start = middle = time.perf_counter()
    try:
        changed = step.run(gm, context) if wanted else False
        inherit_sources(gm.graph)
        middle = time.perf_counter()
        verify(gm, step.stage, after=step.name, table=context.table)
    except Exception as error:
        _fail(step, gm, context, error)
    end = time.perf_counter()
    record = PassRecord(step.name, (end - start) * 1e3, nodes, len(gm.graph.nodes), changed, (end - middle) * 1e3,
                        context.matches - matches, tuple(context.remarks[remarks:]), not wanted)  # fmt: skip
    tell(context.instruments, "after", context, step, gm, context, record)
    return record


def _wanted(step: Pass, gm: fx.GraphModule, context: Context) -> bool:
    if getattr(step, "required", False):
        return True
    if any(answer is False for answer in tell(context.instruments, "should_run", context, step, gm, context)):
        return False
    return getattr(step, "per_match", False) or context.allows(step.name)


def _fail(step: Pass, gm: fx.GraphModule, context: Context, error: Exception) -> None:
    """Raises what a failed pass raises: QCompilerErrors as they are, others as PassError; instruments see it first."""
    raised = error
    if not isinstance(error, QCompilerError):
        raised = PassError(f"pass {step.name} failed: {type(error).__name__}: {error}", code="pass-failed")
        raised.__cause__ = error
    assert isinstance(raised, QCompilerError)
    tell(context.instruments, "on_error", context, step, gm, context, raised)
    if isinstance(raised, PassError) and raised.reproducer is None:
        raised.hint = raised.hint or HOW_TO_REPRODUCE
    raise raised
