"""Runs lists of passes: verifies before and after each, times it, collects remarks, tells instruments, names what fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import fx

from qcompiler.compile.journal import Journal, PassRecord, Remark
from qcompiler.compile.rewrite import Rule, run_rules
from qcompiler.compile.settings import Settings
from qcompiler.errors import PassError, QCompilerError
from qcompiler.ir.provenance import inherit_sources, inherit_values
from qcompiler.ir.types import QUANT, Stage, quant_of
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.table import Table
from qcompiler.stages.verify import verify
from qcompiler.target import Target

HOW_TO_REPRODUCE = "set QCOMPILER_DEBUG=folder and run again: it writes repro.py, which shows this failure without your model"


@dataclass
class _Run:
    """Where a run of passes stands: the pass manager's own."""

    instruments: tuple[object, ...] = ()
    step: Pass | None = None
    stage: Stage = Stage.TRACED


@dataclass
class Context:
    """What a pass is given beside the graph: the user's settings, which it reads, and the journal, which it writes.

    `table`, `target` and `trains` are the settings that nearly every pass reads. `example`: (args, kwargs) of one call, on which a
    back end checks its kernels.
    """

    settings: Settings = field(default_factory=Settings)
    journal: Journal = field(default_factory=Journal)
    example: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    _run: _Run = field(default_factory=_Run, repr=False)

    @property
    def table(self) -> Table:
        return self.settings.table

    @property
    def target(self) -> Target:
        return self.settings.target

    @property
    def trains(self) -> bool:
        return self.settings.trains

    @property
    def stage(self) -> Stage:
        """Where the graph stands."""
        return self._run.stage

    def remark(self, pass_name: str, code: str, text: str, node: fx.Node | None = None) -> None:
        """Notes something that a person should know."""
        self.journal.remark(pass_name, code, text, node)

    def keep_float(self, by: str, node: fx.Node, why: Obstacle) -> None:
        """Makes a quantized node float, with a remark of the pass `by`."""
        node.meta[QUANT] = quant_of(node).with_(int8=False, mode=None, float_output=False, folded=False, reason=why.text, code=why.code)
        self.journal.floats.append((node.name, why))
        self.journal.remark_float(by, node)

    def needs_7_bits(self, values: Sequence[fx.Node]) -> bool:
        """Whether the kernel of an op that takes one of these values, maybe behind its observer, could overflow at 8 bits."""
        direct = [user for value in values for user in value.users]
        takers = [*direct, *(u for user in direct if user.op == "call_module" for u in user.users)]
        return any(self._takes_7_bits(user) for user in takers if quant_of(user).int8)

    def _takes_7_bits(self, taker: fx.Node) -> bool:
        """A module of the user's own may hold any kernel."""
        if taker.op == "call_module":
            return self.target.reduces_all
        row = self.table.of(taker)
        return row is not None and row.macs is not None and self.target.activation_bits(row, taker) < 8

    def allows(self, rewrite: str, node: fx.Node | None = None) -> bool:
        """Whether an optional rewrite may be done: the gate of the compile numbers the questions and answers them."""
        step = self._run.step
        name = step.name if step is not None and step.name != rewrite else ""
        return self.journal.offer(f"{name}: {rewrite}".removeprefix(": ") + (f" at %{node.name}" if node is not None else ""))

    def apply_rules(self, gm: fx.GraphModule, rules: Sequence[Rule]) -> int:
        """Runs rewrite rules to their fixpoint and returns how often one fired; each refused candidate becomes a remark."""
        fired, refused = run_rules(gm, rules, self.table, lambda rule, node: self.allows(rule.name, node))
        name = self._run.step.name if self._run.step is not None else "rules"
        for rejection in refused:
            self.remark(name, rejection.code, f"{rejection.rule}: {rejection.reason}", rejection.node)
        count = sum(fired.values())
        self.journal.matches += count
        return count


@runtime_checkable
class Pass(Protocol):
    """A step of the compiler. `stage` is the stage it leaves the graph in; `run` returns whether anything changed.

    `required`: later passes stand on it, so no instrument can skip it. A pass without the attribute is optional. An optional
    pass is one numbered rewrite, unless it has `per_match = True` and asks `context.allows` for each rewrite itself.
    """

    @property
    def name(self) -> str: ...

    @property
    def stage(self) -> Stage: ...

    def run(self, gm: fx.GraphModule, context: Context) -> bool: ...


class PassInstrument:
    """Watches a compile: override what you need. An exception in an instrument becomes a remark and changes no result.

    The order of a compile: start; for each pass should_run (optional passes), before, after or on_error; built; finish, also after an
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

    def built(self, module: Any, context: Context) -> None:
        """The back end has made its module of the graph (convert_fx alone)."""

    def finish(self, context: Context) -> None:
        """The compile is over."""


Instrument = PassInstrument


def _hooks(instruments: Sequence[object], event: str, context: Context) -> Iterator[Callable[..., object]]:
    """The instruments' methods of that name, each such that an exception becomes a remark: an aid must not decide over a compile."""

    def guarded(instrument: object, hook: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> Any:
            try:
                return hook(*args)
            except Exception as error:
                text = f"{type(instrument).__name__}.{event}: {type(error).__name__}: {error}"
                remark = Remark("instrument", "instrument-failed", text)
                if remark not in context.journal.remarks:
                    context.journal.remarks.append(remark)
                return None

        return call

    for instrument in instruments:
        hook = getattr(instrument, event, None)
        if hook is not None:
            yield guarded(instrument, hook)


def tell(instruments: Sequence[object], event: str, context: Context, *args: object) -> list[object]:
    """Calls one method of every instrument that has it; None stands for an answer that failed."""
    return [hook(*args) for hook in _hooks(instruments, event, context)]


def tell_built(module: object, context: Context) -> None:
    """Tells those who watch the compile what the back end has made."""
    tell(context._run.instruments, "built", context, module, context)


def run_passes(
    gm: fx.GraphModule,
    passes: Sequence[Pass],
    stage: Stage,
    context: Context,
    instruments: Sequence[object] = (),
    *,
    recompile: bool = True,
) -> fx.GraphModule:
    """Takes `gm`, which stands at `stage`, through the passes in place; raises PassError with the pass and node that failed.

    `instruments` watch beside those of the context. `recompile`: make the code that runs `gm`; False where nobody runs it
    before it is changed further.
    """
    run = context._run
    try:
        with watch(context, (*run.instruments, *instruments)):
            verify(gm, stage, table=context.table)
            run.stage = stage
            for run.step in passes:
                context.journal.records.append(_one(run.step, gm, context))
                run.stage = run.step.stage
            if recompile:
                gm.recompile()
    finally:
        run.step = None
    return gm


def run_last(step: Pass, gm: fx.GraphModule, context: Context) -> None:
    """Runs a step that makes no graph of the graph. Where it fails it is named, and shown to instruments, as a pass is."""
    run = context._run
    try:
        run.step = step
        tell(run.instruments, "before", context, step, gm, context)
        step.run(gm, context)
    except Exception as error:
        _fail(step, gm, context, error)
    finally:
        run.step = None


@contextmanager
def watch(context: Context, instruments: Sequence[object]) -> Iterator[None]:
    """These instruments, and no others, watch what is done with the context in the block."""
    outer, context._run.instruments = context._run.instruments, tuple(instruments)
    try:
        yield
    finally:
        context._run.instruments = outer


def _one(step: Pass, gm: fx.GraphModule, context: Context) -> PassRecord:
    instruments, journal = context._run.instruments, context.journal
    wanted = _wanted(step, gm, context)
    if not wanted:
        context.remark(step.name, "pass-skipped", "this optional pass did not run: an instrument or QCOMPILER_BISECT held it back")
    tell(instruments, "before", context, step, gm, context)
    nodes, matches, remarks = len(gm.graph.nodes), journal.matches, len(journal.remarks)
    start = middle = time.perf_counter()
    try:
        changed = step.run(gm, context) if wanted else False
        inherit_sources(gm.graph)
        inherit_values(gm.graph)
        middle = time.perf_counter()
        verify(gm, step.stage, after=step.name, table=context.table)
    except Exception as error:
        _fail(step, gm, context, error)
    end = time.perf_counter()
    record = PassRecord(step.name, (end - start) * 1e3, nodes, len(gm.graph.nodes), changed, (end - middle) * 1e3,
                        journal.matches - matches, tuple(journal.remarks[remarks:]), not wanted)  # fmt: skip
    tell(instruments, "after", context, step, gm, context, record)
    return record


def _wanted(step: Pass, gm: fx.GraphModule, context: Context) -> bool:
    if getattr(step, "required", False):
        return True
    if any(answer is False for answer in tell(context._run.instruments, "should_run", context, step, gm, context)):
        return False
    return getattr(step, "per_match", False) or context.allows(step.name)


def _fail(step: Pass, gm: fx.GraphModule, context: Context, error: Exception) -> None:
    """Raises what a failed pass raises: QCompilerErrors as they are, others as PassError; instruments see it first."""
    raised = error
    if not isinstance(error, QCompilerError):
        raised = PassError(f"pass {step.name} failed: {type(error).__name__}: {error}", code="pass-failed")
        raised.__cause__ = error
    assert isinstance(raised, QCompilerError)
    tell(context._run.instruments, "on_error", context, step, gm, context, raised)
    if isinstance(raised, PassError) and raised.reproducer is None:
        raised.hint = raised.hint or HOW_TO_REPRODUCE
    raise raised
