"""bisect: which pass, which match and which node first take a compile away from the float model.

The pipeline is run up to a pass, anew each time, and the graph it gives is run on the inputs and compared with the model. So
a pass that changes weights in place is found as well. Behind freeze_qparams values are rounded to their qparams, though no
quantize stands in the graph yet: an error in a scale is that pass's and not of the one that spells it out.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import fx, nn

from qcompiler.ambient import in_plain_torch
from qcompiler.backends import backend_of
from qcompiler.backends.torch.passes.lower import Lower
from qcompiler.backends.torch.runtime.functions import quantize_along
from qcompiler.batches import batches, check_data
from qcompiler.debug.compare import Tallies, float_steps
from qcompiler.debug.match import Site, match
from qcompiler.debug.metrics import compute_sqnr
from qcompiler.debug.tally import Tally
from qcompiler.debug.walk import Walk
from qcompiler.errors import ConfigError, InputError, QCompilerError
from qcompiler.executable.steps import Steps, steps_of_graph
from qcompiler.gate import Gate, gated
from qcompiler.ir.types import Stage, quant_of
from qcompiler.kinds import module_of
from qcompiler.observers.watch import Watch
from qcompiler.ops.arguments import activations, replace_activations
from qcompiler.ops.reference import dequantize, quantize
from qcompiler.ops.table import OPS, Table
from qcompiler.pass_manager import Context, Pass, run_passes
from qcompiler.passes import FUSE, OBSERVE, QUANTIZE
from qcompiler.pipeline import context_for, traced
from qcompiler.trace.state import untouched

Metric = Callable[[Any, Any], float]
METRICS: Mapping[str, Metric] = {"sqnr": compute_sqnr}
FLOAT_TOLERANCE, TOLERANCE = 60.0, 20.0  # dB; folding rounds at some 120 dB, 8 bits of a deep network leave 20 to 45


@dataclass(frozen=True)
class Probe:
    """One run: the state it was taken at, the decibels of the results, and what went wrong where it did not run."""

    state: str
    db: float
    error: str = ""


@dataclass(frozen=True)
class Bisection:
    """The first pass over tolerance (None: there is none), the match inside it and the node; `probes`: all runs in order."""

    pass_name: str | None
    match: str | None
    node: str | None
    module_path: str
    location: str
    before: float
    after: float
    passes: int
    matches: int
    probes: tuple[Probe, ...]
    error: str = ""

    @property
    def runs(self) -> int:
        return len(self.probes)

    def __bool__(self) -> bool:
        return self.pass_name is not None

    def to_json(self) -> str:
        data = asdict(self) | {"runs": self.runs}
        return json.dumps(_finite(data), indent=1, allow_nan=False)

    def __str__(self) -> str:
        runs = f"{self.runs} runs over {self.passes} passes"
        if self.pass_name is None:
            return f"no pass is over tolerance: {self.after:.1f} dB at the end; {runs}"
        lines = [f"pass {self.pass_name}: {self.before:.1f} dB before, {self.after:.1f} dB after; {runs}"]
        lines += [f"match: {self.match} (of {self.matches})"] if self.match else []
        place = ", ".join(p for p in (self.module_path, self.location) if p)
        lines += [f"node: {self.node}" + (f" ({place})" if place else "")] if self.node else []
        lines += [f"it fails there: {self.error}"] if self.error else []
        return "\n".join(lines)


def _finite(value: Any) -> Any:
    """JSON has no infinities: null stands for no error at all, -300 for nothing but error."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None if value > 0 else -300.0


@in_plain_torch
def bisect(
    model: nn.Module,
    inputs: Any,
    metric: str | Metric = "sqnr",
    tol_db: float = TOLERANCE,
    *,
    float_tol_db: float = FLOAT_TOLERANCE,
    qconfig_mapping: Any = None,
    rules: Sequence[Any] = (),
    passes: Sequence[Pass] = (),
    replace: Mapping[str, Pass] | None = None,
    table: Table = OPS,
    engine: str | None = None,
    isa: str | None = None,
    concrete_args: Mapping[str, Any] | None = None,
) -> Bisection:
    """Finds the first pass after which the result is less than `tol_db` above its error; at most ceil(log2(passes)) + 2 runs.

    A few more, ceil(log2(matches at that node)), find the match. `inputs`: batches as calibrate takes them; they calibrate as
    well. `metric`: "sqnr", or a function of the lists of the model's and the graph's results that gives decibels. While the graph
    computes with floats the tolerance is `float_tol_db`. `rules`, `passes` and the other settings: as given to prepare_fx;
    `replace` puts a pass in the place of a built-in one of that name. Raises ConfigError, InputError.
    """
    function = metric if callable(metric) else METRICS.get(metric)
    if function is None:
        raise ConfigError(f"unknown metric {metric!r}", code="metric", hint=f"one of {', '.join(METRICS)}, or a function")
    check_data(inputs, "inputs")
    data = list(batches(inputs))
    if not data:
        raise InputError("0 batches of inputs", code="no-data", hint="an iterator can be read only once; is the loader empty?")
    settings = {"qconfig_mapping": qconfig_mapping, "engine": engine, "isa": isa, "table": table, "rules": rules}
    pipeline = _Pipeline(module_of(model), data, _steps(passes, replace or {}), settings, concrete_args)
    return _Search(pipeline, function, (float_tol_db, tol_db)).run()


def _steps(passes: Sequence[Pass], replace: Mapping[str, Pass]) -> tuple[list[Pass], int]:
    """All passes in order, and how many there are before calibration."""
    prepare: list[Pass] = [*FUSE, *passes, *OBSERVE]
    steps: list[Pass] = [*prepare, *QUANTIZE, Lower()]
    unknown = set(replace) - {step.name for step in steps}
    if unknown:
        raise ConfigError(f"there is no pass {sorted(unknown)[0]!r} to replace", code="no-pass",
                          hint=f"one of {', '.join(step.name for step in steps)}")  # fmt: skip
    return [replace.get(step.name, step) for step in steps], len(prepare)


@dataclass
class _State:
    """A graph after some passes: its distance from the model, and each node's site and errors by float node."""

    probe: Probe
    gate: Gate
    nodes: dict[str, tuple[Site, Tally]] = field(default_factory=dict)

    def own(self, *nodes: str) -> float:
        """The largest own noise of some float nodes against their signal, of the whole or of the median channel."""
        tallies = [self.nodes[name][1] for name in nodes if name in self.nodes]
        return max((10 ** (-min(t.decibels(t.own), t.own_of_channels) / 10) for t in tallies), default=0.0)


class _Pipeline:
    """The compile of one model, up to any pass."""

    def __init__(self, model: nn.Module, data: Any, steps: tuple[list[Pass], int], settings: dict[str, Any], concrete_args: Any) -> None:
        self.model, self.data, self.settings = model, data, settings
        self.steps, self.calibrate_at = steps
        self.options = {"example_kwargs": data[0][1] or None, "concrete_args": concrete_args}
        self.target = self.context().target
        self.floats: Steps = float_steps(model, data[0], settings["table"], concrete_args)
        with torch.inference_mode(), untouched(model):
            self.expected = [self._call(model, args, kwargs) for args, kwargs in data]

    def context(self) -> Context:
        return context_for(self.model, **self.settings)

    def _call(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        try:
            return module(*args, **kwargs)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InputError(f"the model does not take these inputs: {type(error).__name__}: {error}", code="input-shape") from error

    @in_plain_torch
    def graph(self, count: int, limit: int | None = None) -> tuple[fx.GraphModule, Gate]:
        """The graph after `count` passes, of whose last only the first `limit` matches are applied."""
        context, stage, gate = self.context(), Stage.TRACED, Gate(limit)
        gm = traced(self.model, self.data[0][0], context, self.options)
        cuts = sorted({0, min(self.calibrate_at, count), max(count - 1, 0), count})
        for start, end in itertools.pairwise(cuts):
            if start == self.calibrate_at:
                self._calibrate(gm)
            with gated(gate if end == count else None):  # the last part is the one pass whose matches count
                run_passes(gm, self.steps[start:end], stage, context)
            stage = self.steps[end - 1].stage
        if count > self.calibrate_at:
            _round_frozen(gm, self.settings["table"])
        return gm, gate

    def _calibrate(self, gm: fx.GraphModule) -> None:
        with steps_of_graph(gm).kept():
            for args, kwargs in self.data:
                gm.eval()(*args, **kwargs)

    def state(self, count: int, limit: int | None, metric: Metric) -> _State:
        label = self.steps[count - 1].name if count else "trace"
        gate = Gate(limit)
        try:
            gm, gate = self.graph(count, limit)
            tallies, results = self._measure(gm)
            db = metric(self.expected, results)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, QCompilerError) as error:
            return _State(Probe(_label(label, limit), -math.inf, f"{type(error).__name__}: {error}"), gate)
        state = _State(Probe(_label(label, limit), -math.inf if math.isnan(db) else db), gate)
        for name, tally in tallies.tallies.items():
            site = tallies.walk.matching.sites[name]
            if site.float_step.name not in state.nodes or tally.own > state.nodes[site.float_step.name][1].own:
                state.nodes[site.float_step.name] = (site, tally)
        return state

    def _measure(self, gm: fx.GraphModule) -> tuple[Tallies, list[Any]]:
        steps = steps_of_graph(gm.eval())
        tallies = Tallies(Walk(self.floats, steps, match(self.floats, steps)))
        running = backend_of(self.target.backend).running(self.target)
        with torch.inference_mode(), running, self.floats.kept(), steps.kept():
            return tallies, [tallies.walk.run(args, kwargs, tallies.visit)[1] for args, kwargs in self.data]


def _label(name: str, limit: int | None) -> str:
    return name if limit is None else f"{name}, {limit} matches"


def _round_frozen(gm: fx.GraphModule, table: Table) -> None:
    """Rounds each value with frozen qparams, where the passes have not yet put quantize and dequantize into the graph."""
    nodes = list(gm.graph.nodes)
    observed = any(n.op == "call_module" and isinstance(gm.get_submodule(str(n.target)), Watch) for n in nodes)
    if observed or any(n.target in (quantize, torch.quantize_per_tensor, quantize_along) for n in nodes):
        return
    for node in nodes:
        p = quant_of(node).qparams
        if p is None:
            continue
        with gm.graph.inserting_after(node):
            q = gm.graph.call_function(quantize, (node, p.scale, p.zero_point, p.quant_min, p.quant_max, p.dtype))
        with gm.graph.inserting_after(q):
            d = gm.graph.call_function(dequantize, (q, p.scale, p.zero_point))
        for made in (q, d):
            made.meta.update({k: v for k, v in node.meta.items() if k != "qc_quant"})
        for user in [u for u in node.users if u is not q]:
            if quant_of(node).int8:
                user.replace_input_with(node, d)
            elif quant_of(user).int8 and node in set(activations(table, user)):
                replace_activations(table, user, node, d)
    gm.graph.eliminate_dead_code()
    gm.recompile()


class _Search:
    """The halving, and what is told of the pass that it ends at."""

    def __init__(self, pipeline: _Pipeline, metric: Metric, tolerances: tuple[float, float]) -> None:
        self.pipeline, self.metric, self.tolerances = pipeline, metric, tolerances
        self.probes: list[Probe] = []

    def at(self, count: int, limit: int | None = None) -> _State:
        state = self.pipeline.state(count, limit, self.metric)
        self.probes.append(state.probe)
        return state

    def bad(self, count: int, state: _State) -> bool:
        return state.probe.db < self.tolerances[count > self.pipeline.calibrate_at]

    def run(self) -> Bisection:
        first, total = self.at(0), len(self.pipeline.steps)
        if self.bad(0, first):
            return self.found(0, first, first)
        last = self.at(total)
        if not self.bad(total, last):
            return self.report(None, None, None, first, last)
        low, good, high, wrong = 0, first, total, last
        while high - low > 1:
            middle = (low + high) // 2
            state = self.at(middle)
            if self.bad(middle, state):
                high, wrong = middle, state
            else:
                low, good = middle, state
        return self.found(high, good, wrong)

    def found(self, count: int, good: _State, wrong: _State) -> Bisection:
        node = self.culprit(count, good, wrong)
        match = self.match(count, node, wrong) if count else None
        return self.report(self.pipeline.steps[count - 1].name if count else "trace", match, node, good, wrong)

    def culprit(self, count: int, good: _State, wrong: _State) -> str | None:
        """Of a float graph the first node over tolerance by its own error, else the one whose own error grew most."""
        grown = {name: wrong.own(name) - good.own(name) for name in wrong.nodes}
        if count <= self.pipeline.calibrate_at:
            limit = 10 ** (-self.tolerances[0] / 10)
            over = next((name for name, growth in grown.items() if growth > limit), None)
            if over is not None:
                return over
        return max(grown, key=lambda name: grown[name], default=None)

    def match(self, count: int, node: str | None, wrong: _State) -> str | None:
        """The first match with which the node is wrong (where no match names the node: the result); None where it is without any."""
        seen = wrong.gate.seen
        names = wrong.nodes[node][0].step.origin if node is not None else ()
        named = [i for i, text in enumerate(seen, 1) if set(names).intersection(re.findall(r"%(\S+)", text))]
        candidates = [0, *(named or range(1, len(seen) + 1))]
        low, high = 0, len(candidates) - 1
        while low < high:
            middle = (low + high) // 2
            state = self.at(count, candidates[middle])
            is_bad = state.own(*names) > wrong.own(*names) / 2 if named else self.bad(count, state)
            low, high = (low, middle) if is_bad or state.probe.error else (middle + 1, high)
        return seen[candidates[high] - 1] if candidates[high] else None

    def report(self, name: str | None, match: str | None, node: str | None, good: _State, wrong: _State) -> Bisection:
        step = wrong.nodes[node][0].computed if node in wrong.nodes else None
        title, path, location = (step.name, step.module_path, step.location) if step is not None else (None, "", "")
        return Bisection(name, match, title, path, location, good.probe.db, wrong.probe.db, len(self.pipeline.steps),
                         len(wrong.gate.seen), tuple(self.probes), wrong.probe.error)  # fmt: skip
