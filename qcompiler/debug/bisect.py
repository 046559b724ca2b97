"""bisect: which pass, which match and which node first take a compile away from the float model.

The pipeline is run up to a pass, anew each time, and the graph it gives is run on the inputs and compared with the model
(bisect_states.py). So a pass that changes weights in place is found as well.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from torch import nn

from qcompiler.ambient import in_plain_torch
from qcompiler.backends import backend_of
from qcompiler.choices import Choices, settings_for
from qcompiler.compile.pass_manager import Pass
from qcompiler.compile.rewrite import Rule
from qcompiler.config.custom_config import ConvertCustomConfig, as_config
from qcompiler.debug.bisect_states import Batch, Compile, CompileOfPrepared, Metric, Probe, State
from qcompiler.debug.metrics import compute_sqnr
from qcompiler.errors import ConfigError, InputError
from qcompiler.inputs.batches import batches, check_data
from qcompiler.inputs.door import door
from qcompiler.inputs.kinds import module_of
from qcompiler.ops.table import OPS, Table
from qcompiler.passes import pipeline_for
from qcompiler.prepared.module import state_of

METRICS: Mapping[str, Metric] = {"sqnr": compute_sqnr}
NONE_CHOSEN = Choices(qconfig_mapping=None, prepare_custom_config=None, backend_config=None, rules=(), table=OPS, backend="torch",
                      engine=None, isa=None, concrete_args=None)  # fmt: skip
FLOAT_TOLERANCE, TOLERANCE = 60.0, 20.0  # dB; folding rounds at some 120 dB, 8 bits of a deep network leave 20 to 45


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


def _finite(value: object) -> object:
    """JSON has no infinities: null stands for no error at all, -300 for nothing but error."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None if value > 0 else -300.0


@in_plain_torch
@door
def bisect(
    model: nn.Module, inputs: object, metric: str | Metric = "sqnr", tol_db: float = TOLERANCE, *, float_tol_db: float = FLOAT_TOLERANCE,
    qconfig_mapping: object = None, prepare_custom_config: object = None, convert_custom_config: object = None,
    backend_config: object = None, training: bool = False, reference: bool = False, rules: Sequence[Rule] = (),
    passes: Sequence[Pass] = (), replace: Mapping[str, Pass] | None = None, table: Table = OPS, backend: str = "torch",
    engine: str | None = None, isa: str | None = None, concrete_args: Mapping[str, object] | None = None,
) -> Bisection:  # fmt: skip
    """Finds the first pass after which the result is less than `tol_db` above its error; at most ceil(log2(passes)) + 2 runs.

    A few more, ceil(log2(matches at that node)), find the match. `inputs`: batches as calibrate takes them; they calibrate as
    well. `metric`: "sqnr", or a function of the lists of the model's and the graph's results that gives decibels. While the graph
    computes with floats the tolerance is `float_tol_db`. `training`: the passes of prepare_qat_fx, for a model in train mode; results
    are compared in eval mode. `reference`: those of convert_to_reference_fx, which end before the back end's. `rules`, `passes` and the
    other settings: as given to prepare_fx and convert_fx; `replace` puts a pass in the place of a built-in one of that name.

    A `model` that prepare_fx or prepare_qat_fx returned, calibrated or trained, is bisected from there on, with the settings that it has:
    the passes of convert_fx, against what it computes (after training, what training simulated). Raises ConfigError, InputError.
    """
    choices = Choices(qconfig_mapping=qconfig_mapping, prepare_custom_config=prepare_custom_config, backend_config=backend_config,
                      rules=tuple(rules), table=table, backend=backend, engine=engine, isa=isa,
                      concrete_args=concrete_args)  # fmt: skip
    what = _Asked(model, choices, training, tuple(passes), convert_custom_config, reference, replace or {})
    return _Search(what.compile(_batches(inputs)), _metric(metric), (float_tol_db, tol_db)).run()


def _metric(metric: str | Metric) -> Metric:
    function = metric if callable(metric) else METRICS.get(metric)
    if function is None:
        raise ConfigError(f"unknown metric {metric!r}", code="metric", hint=f"one of {', '.join(METRICS)}, or a function")
    return function


@dataclass(frozen=True)
class _Asked:
    """The compile that is to be bisected, as the arguments of `bisect` say it."""

    model: nn.Module
    choices: Choices
    training: bool
    passes: tuple[Pass, ...]
    convert_custom_config: object
    reference: bool
    replace: Mapping[str, Pass]

    def compile(self, data: list[Batch]) -> Compile:
        state = state_of(self.model)
        if state is not None and (self.training or self.passes or self.choices != NONE_CHOSEN):
            raise ConfigError("this model is prepared already: it has the settings that it was prepared with", code="prepared",
                              hint="bisect(prepared, inputs), with convert_custom_config, reference and replace alone")  # fmt: skip
        model = module_of(self.model)
        settings = state.settings if state is not None else settings_for(model, self.training, **self.choices)
        custom = as_config(self.convert_custom_config, ConvertCustomConfig)
        settings = settings.with_(quantized_classes=custom.observed_to_quantized_mapping.get("static", {}))
        pipeline = pipeline_for(settings).with_passes(self.passes).with_lowering(backend_of(settings.target.backend).passes)
        pipeline = pipeline if state is None else pipeline.behind_prepare
        pipeline = (pipeline.reference if self.reference else pipeline).with_replaced(self.replace)
        kind = Compile if state is None else CompileOfPrepared
        return kind(model, data, settings, pipeline)


def _batches(inputs: object) -> list[Batch]:
    check_data(inputs, "inputs")
    data = list(batches(inputs))
    if not data:
        raise InputError("0 batches of inputs", code="no-data", hint="an iterator can be read only once; is the loader empty?")
    return data


class _Search:
    """The halving, and what is told of the pass that it ends at."""

    def __init__(self, compile: Compile, metric: Metric, tolerances: tuple[float, float]) -> None:
        self.compile, self.metric, self.tolerances = compile, metric, tolerances
        self.probes: list[Probe] = []

    def at(self, count: int, limit: int | None = None) -> State:
        state = self.compile.state(count, limit, self.metric)
        self.probes.append(state.probe)
        return state

    def bad(self, count: int, state: State) -> bool:
        return state.probe.db < self.tolerances[count >= self.compile.rounds_at]

    def run(self) -> Bisection:
        first, total = self.at(0), len(self.compile.steps)
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

    def found(self, count: int, good: State, wrong: State) -> Bisection:
        node = self.culprit(count, good, wrong)
        match = self.match(count, node, wrong) if count else None
        return self.report(self.compile.steps[count - 1].name if count else "trace", match, node, good, wrong)

    def culprit(self, count: int, good: State, wrong: State) -> str | None:
        """Of a float graph the first node over tolerance by its own error, else the one whose own error grew most."""
        grown = {name: wrong.own(name) - good.own(name) for name in wrong.nodes}
        if count < self.compile.rounds_at:
            limit = 10 ** (-self.tolerances[0] / 10)
            over = next((name for name, growth in grown.items() if growth > limit), None)
            if over is not None:
                return over
        return max(grown, key=lambda name: grown[name], default=None)

    def match(self, count: int, node: str | None, wrong: State) -> str | None:
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

    def report(self, name: str | None, match: str | None, node: str | None, good: State, wrong: State) -> Bisection:
        step = wrong.nodes[node][0].computed if node in wrong.nodes else None
        title, path, location = (step.name, step.module_path, step.location) if step is not None else (None, "", "")
        return Bisection(name, match, title, path, location, good.probe.db, wrong.probe.db, len(self.compile.steps),
                         len(wrong.gate.seen), tuple(self.probes), wrong.probe.error)  # fmt: skip
