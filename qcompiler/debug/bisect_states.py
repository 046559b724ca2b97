"""The states of a compile that bisect looks at: the graph after some passes, run on the inputs and compared with the model.

Behind freeze_qparams values are rounded to their qparams, though no quantize stands in the graph yet: an error in a scale is that
pass's and not of the one that spells it out. A graph that will be trained rounds from the moment that it has fake quantization; its
ranges are those of the inputs.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from qcompiler.ambient import in_plain_torch
from qcompiler.backends import backend_of
from qcompiler.compile.gate import Gate, gated
from qcompiler.compile.pass_lists import Pipeline
from qcompiler.compile.pass_manager import Context, run_passes
from qcompiler.compile.settings import Settings
from qcompiler.debug.compare import Tallies, float_steps
from qcompiler.debug.match import Site, match
from qcompiler.debug.parity import simulated
from qcompiler.debug.tally import Tally
from qcompiler.debug.walk import Walk
from qcompiler.errors import InputError, QCompilerError
from qcompiler.executable.steps import Steps, quantizes, steps_of_graph
from qcompiler.frontend import traced
from qcompiler.ir.types import Stage, quant_of
from qcompiler.observers.watch import Watch
from qcompiler.ops.arguments import activations, replace_activations
from qcompiler.ops.reference import dequantize, quantize
from qcompiler.ops.table import Table
from qcompiler.prepared.observed_copy import observed_copy
from qcompiler.trace.state import untouched

Metric = Callable[[Any, Any], float]
Batch = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Probe:
    """One run: the state it was taken at, the decibels of the results, and what went wrong where it did not run."""

    state: str
    db: float
    error: str = ""


@dataclass
class State:
    """A graph after some passes: its distance from the model, and each node's site and errors by float node."""

    probe: Probe
    gate: Gate
    nodes: dict[str, tuple[Site, Tally]] = field(default_factory=dict)

    def own(self, *nodes: str) -> float:
        """The largest own noise of some float nodes against their signal, of the whole or of the median channel."""
        tallies = [self.nodes[name][1] for name in nodes if name in self.nodes]
        return max((10 ** (-min(t.decibels(t.own), t.own_of_channels) / 10) for t in tallies), default=0.0)


class Compile:
    """The compile of one model, up to any pass. `rounds_at`: after how many passes the graph computes with rounded values."""

    def __init__(self, model: nn.Module, data: list[Batch], settings: Settings, pipeline: Pipeline) -> None:
        self.model, self.data, self.settings = model, data, settings
        self.steps, self.calibrate_at = pipeline.steps, len(pipeline.prepare)
        watching = [index for index, step in enumerate(self.steps) if step.name == "insert_observers"]
        self.rounds_at = (watching[0] if settings.trains and watching else self.calibrate_at) + 1
        reference = copy.deepcopy(model).eval() if settings.trains else model
        self.floats: Steps = float_steps(reference, data[0], settings.with_(trains=False))
        with torch.inference_mode(), untouched(reference):
            self.expected = [_call(reference, args, kwargs) for args, kwargs in data]

    @in_plain_torch
    def graph(self, count: int, limit: int | None = None) -> tuple[fx.GraphModule, Gate]:
        """The graph after `count` passes, of whose last only the first `limit` matches are applied."""
        gate = Gate(limit)
        gm, context, stage = self.start()
        cuts = sorted({0, min(self.calibrate_at, count), max(count - 1, 0), count})
        for start, end in itertools.pairwise(cuts):
            if start == self.calibrate_at:
                self._calibrate(gm)
            with gated(gate if end == count else None):  # the last part is the one pass whose matches count
                run_passes(gm, self.steps[start:end], stage, context)
            stage = self.steps[end - 1].stage
        if self.settings.trains and self.rounds_at <= count <= self.calibrate_at:
            self._calibrate(gm)
        if count > self.calibrate_at:
            _round_frozen(gm, self.settings.table)
        return gm, gate

    def start(self) -> tuple[fx.GraphModule, Context, Stage]:
        """What the first pass is given."""
        context = Context(self.settings)
        return traced(self.model, self.data[0][0], context, self.data[0][1] or None), context, Stage.TRACED

    def _calibrate(self, gm: fx.GraphModule) -> None:
        with steps_of_graph(gm).kept(), torch.no_grad():
            for args, kwargs in self.data:
                gm.eval()(*args, **kwargs)

    def state(self, count: int, limit: int | None, metric: Metric) -> State:
        """The state after `count` passes. What does not compile or run is as far from the model as can be."""
        label = self.steps[count - 1].name if count else "trace"
        gate = Gate(limit)
        try:
            gm, gate = self.graph(count, limit)
            tallies, results = self._measure(gm)
            db = metric(self.expected, results)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, QCompilerError) as error:
            return State(Probe(_label(label, limit), -math.inf, f"{type(error).__name__}: {error}"), gate)
        state = State(Probe(_label(label, limit), -math.inf if math.isnan(db) else db), gate)
        for name, tally in tallies.tallies.items():
            site = tallies.walk.matching.sites[name]
            if site.float_step.name not in state.nodes or tally.own > state.nodes[site.float_step.name][1].own:
                state.nodes[site.float_step.name] = (site, tally)
        return state

    def _measure(self, gm: fx.GraphModule) -> tuple[Tallies, list[Any]]:
        target = self.settings.target
        backend = backend_of(target.backend)
        steps = backend.steps(gm.eval())
        tallies = Tallies(Walk(self.floats, steps, match(self.floats, steps)))
        with torch.inference_mode(), backend.running(target), self.floats.kept(), steps.kept():
            return tallies, [tallies.walk.run(args, kwargs, tallies.visit)[1] for args, kwargs in self.data]


class CompileOfPrepared(Compile):
    """The compile of a model that was calibrated or trained already: from its observed graph on. What training simulated is the truth."""

    def __init__(self, prepared: nn.Module, data: list[Batch], settings: Settings, pipeline: Pipeline) -> None:
        self.model, self.data, self.settings = prepared, data, settings
        self.steps, self.calibrate_at, self.rounds_at = pipeline.convert, 0, 0 if settings.trains else 1
        truth = simulated(prepared, *data[0]) if settings.trains else self.start()[0]
        self.floats = steps_of_graph(truth)
        with torch.inference_mode(), self.floats.kept():  # a calibrated graph is run by steps: a call would go on calibrating it
            self.expected = [_call(truth, args, kwargs) if settings.trains else self.floats.result(args, kwargs) for args, kwargs in data]

    def start(self) -> tuple[fx.GraphModule, Context, Stage]:
        gm, state = observed_copy(self.model, "error")
        return gm.eval(), Context(self.settings, state.journal), Stage.OBSERVED

    def _calibrate(self, gm: fx.GraphModule) -> None:
        """It has seen its data."""


def _call(module: nn.Module, args: Any, kwargs: Any) -> Any:
    try:
        return module(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"the model does not take these inputs: {type(error).__name__}: {error}", code="input-shape") from error


def _label(name: str, limit: int | None) -> str:
    return name if limit is None else f"{name}, {limit} matches"


def _round_frozen(gm: fx.GraphModule, table: Table) -> None:
    """Rounds each value with frozen qparams, where the passes have not yet put quantize and dequantize into the graph."""
    nodes = list(gm.graph.nodes)
    observed = any(n.op == "call_module" and isinstance(gm.get_submodule(str(n.target)), Watch) for n in nodes)
    if observed or any(quantizes(n.target) for n in nodes):
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
