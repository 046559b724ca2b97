"""How far two outputs are apart, and where in a quantized graph the distance comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import torch
from torch import fx, nn

from qcompiler.ambient import in_plain_torch
from qcompiler.choices import check_float
from qcompiler.compile.pass_manager import Context
from qcompiler.compile.settings import Settings
from qcompiler.debug.comparison import Comparison, NodeError, ordered
from qcompiler.debug.match import Matching, Site, match
from qcompiler.debug.metrics import tensors
from qcompiler.debug.profile import StepTimes, step_times
from qcompiler.debug.tally import Tally, weight_histogram
from qcompiler.debug.walk import RANDOM, Seen, Walk, pairs
from qcompiler.errors import ConfigError, InputError, QCompilerError
from qcompiler.executable import Executable
from qcompiler.executable.call_forms import CallForms
from qcompiler.executable.steps import Steps, steps_of_graph
from qcompiler.frontend import traced
from qcompiler.inputs.batches import batches, check_data
from qcompiler.inputs.checks import MARK, check_eval
from qcompiler.inputs.door import door
from qcompiler.inputs.fingerprint import WEIGHTS, other_weights
from qcompiler.inputs.kinds import module_of
from qcompiler.ir.types import SOURCE
from qcompiler.observers.watch import Watch
from qcompiler.ops.table import OPS, Table

SUSPICIOUS = 3.0  # dB: 8 bits do not do worse by themselves for half of a model's weights


@in_plain_torch
@door
def compare(
    float_model: nn.Module,
    quantized: nn.Module,
    data: object,
    *,
    profile: bool = False,
    table: Table = OPS,
    concrete_args: Mapping[str, object] | None = None,
) -> Comparison:
    """Every value of a quantized model against the float model, the node with the worst own error first.

    `float_model`: the model that was quantized (or its graph from fuse_fx). `quantized`: what convert_fx, load or
    convert_to_reference_fx returned. `data`: as calibrate takes it. `profile` times each node on the first batch, and a whole call.
    `table`, `concrete_args`: as given to prepare_fx. Holds sums and 64-bin histograms, not the data. How own and inherited errors are
    told apart stands in walk.py and docs/debugging.md. Raises ConfigError for models that do not belong together or are in train mode,
    InputError for no data or data that does not fit.
    """
    float_model = module_of(float_model)
    check_data(data, "the data to compare on")
    items = iter(batches(data))
    if isinstance(quantized, CallForms):
        quantized, items = one_form(quantized, list(items))
    steps = quantized_steps(quantized)
    first = next(items, None)
    if first is None:
        raise InputError("0 batches of data to compare on", code="no-data", hint="an iterator can be read only once; is the loader empty?")
    floats = float_steps(float_model, first, Settings(table, concrete_args=concrete_args))
    matching = match(floats, steps)
    _require_matches(steps, matching)
    found = Tallies(Walk(floats, steps, matching), _note_weights(float_model, quantized))
    with torch.inference_mode(), floats.kept(), steps.kept():
        found.add(0, *first)
        if profile:
            found.times = step_times(quantized, steps, *first)
        for index, (args, kwargs) in enumerate(items, 1):
            found.add(index, args, kwargs)
    return found.comparison()


def one_form(quantized: CallForms, items: list[Any]) -> tuple[nn.Module, Iterator[Any]]:
    """The form that all batches have. Raises InputError for batches of several forms."""
    found = sorted({quantized.choose(*item) for item in items})
    if len(found) > 1:
        raise InputError(f"the batches have the call forms {', '.join(map(str, found))}", code="call-form",
                         hint="compare one form at a time: compare(model, quantized.call_forms[0], batches_of_that_form)")  # fmt: skip
    return quantized.call_forms[found[0] if found else 0], iter(items)


def quantized_steps(quantized: object) -> Steps:
    """The quantized model as steps: a compiled or loaded module, or a QUANTIZED or LOWERED graph. ConfigError for others."""
    stage = getattr(quantized, MARK, None)
    if isinstance(quantized, Executable):
        steps = quantized._steps()
        if not any(step.origin for step in steps.steps if step.kind == "call"):
            raise ConfigError("this program does not say which node of the model each call computes", code="no-origins",
                              hint="it was saved by an older version, or made by compile_graph: convert the model again")  # fmt: skip
        return steps
    if is_graph(quantized) and not any(isinstance(module, Watch) for module in quantized.modules()):
        return steps_of_graph(quantized)
    given = {"prepared": "a prepared model, which is not quantized yet"}.get(str(stage), f"a {type(quantized).__name__}")
    raise ConfigError(f"compare needs a quantized model, got {given}", code="not-quantized",
                      hint="compare(float_model, convert_fx(prepared), data)")  # fmt: skip


def is_graph(model: object) -> TypeGuard[fx.GraphModule]:
    """Whether it is a graph of this compiler, of any stage."""
    return isinstance(model, fx.GraphModule) and any(SOURCE in node.meta for node in model.graph.nodes)


@in_plain_torch
def float_steps(model: nn.Module, first: tuple[tuple[object, ...], dict[str, object]], settings: Settings) -> Steps:
    """The float model as steps: a graph of ours as it is, any other model traced as prepare_fx does."""
    check_float(model)
    check_eval(model)
    if is_graph(model):
        return steps_of_graph(model)
    return steps_of_graph(traced(model, first[0], Context(settings), first[1] or None))


def _require_matches(steps: Steps, matching: Matching) -> None:
    """Refuses a float model that the quantized one was not made from."""
    computed = [site for site in matching.sites.values() if site.step.kind == "call"]
    if len(computed) > len(matching.unmatched):
        return
    missing = ", ".join(list(matching.unmatched)[:5])
    raise ConfigError(
        f"the float model does not fit the quantized one: of {len(computed) + len(matching.unmatched)} values, {len(matching.unmatched)} "
        f"have no counterpart ({missing}, ...)", code="different-models", hint="compare with the very model that was quantized",
    )  # fmt: skip


def _note_weights(float_model: nn.Module, quantized: nn.Module) -> str:
    """A warning where the float model has other weights than the one that was quantized; empty where it has the same, or nobody knows."""
    recorded = getattr(quantized, WEIGHTS, None)
    if not recorded or is_graph(float_model):
        return ""
    other, known = other_weights(float_model, recorded)
    if not other:
        return ""
    names = ", ".join(other[:3]) + (", ..." if len(other) > 3 else "")
    return (f"not the model that was quantized: {len(other)} of {known} tensors differ ({names}). "
            "The figures tell two models apart, not the error of quantization")  # fmt: skip


class Tallies:
    """A tally for each site, and the results'."""

    def __init__(self, walk: Walk, note: str = "") -> None:
        self.note = note
        self.walk, self.output, self.batches = walk, Tally(), 0
        self.tallies: dict[str, Tally] = {}
        self.times: StepTimes | None = None
        self.unmatched = dict(walk.matching.unmatched)

    def add(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            reference, result = self.walk.run(args, kwargs, self.visit)
        except QCompilerError as error:
            error.message = f"batch {index}: {error.message}"
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError) as error:
            raise InputError(f"batch {index}: {type(error).__name__}: {error}", code="input-shape",
                             hint=self.note or "do both models take this batch?") from error  # fmt: skip
        self.batches += 1
        found = pairs(reference, result)
        if found is None:
            raise ConfigError("the results of the two models differ in structure or shape", code="different-models",
                              hint="compare with the very model that was quantized")  # fmt: skip
        for a, b in found:
            if a.is_floating_point():
                self.output.add(a, b.float(), (a, a), None)

    def visit(self, seen: Seen) -> None:
        name = seen.site.step.name
        if seen.site.step.kind == "input":
            return
        totals = pairs(seen.reference, seen.value)
        owns = pairs(seen.own_reference, seen.own_value)
        if not any(True for _ in tensors([seen.reference, seen.value])):
            return  # a size, a flag
        if seen.random:
            self.unmatched[name] = RANDOM
            return
        if totals is None or owns is None or len(totals) != len(owns):
            self.unmatched[name] = f"its value differs in kind or shape from that of the float node {seen.site.float_step.name}"
            return
        if not all(a.is_floating_point() for a, _ in totals):
            self.unmatched[name] = "its values are not floats"
            return
        tally = self.tallies.setdefault(name, Tally(most=seen.site.step.most))
        for (reference, value), (perfect, own) in zip(totals, owns, strict=True):
            tally.add(reference.float(), value.float(), (perfect.float(), own.float()), seen.grid)

    def comparison(self) -> Comparison:
        found = [(self.walk.matching.sites[name], tally) for name, tally in self.tallies.items() if name not in self.unmatched]
        rows = ordered(_row(site, tally, self._milliseconds(site)) for site, tally in found if not _repeats(site, tally))
        weighted = [row for row in rows if row.weight is not None]
        wrong = [row for row in weighted if row.own < SUSPICIOUS]
        note = self.note
        if not note and weighted and len(wrong) * 2 > len(weighted):
            note = (f"{len(wrong)} of {len(weighted)} nodes with weights do not compute what the float model does: "
                    "is it the model that was quantized, with the same weights?")  # fmt: skip
        if self.output.left_out:
            lost = (f"{self.output.left_out} values of the float results are NaN or inf, which no int8 value is: int8 gives plain numbers "
                    "there, and no figure counts them")  # fmt: skip
            note = f"{note}; {lost}" if note else lost
        output = self.output.decibels(self.output.noise)
        return Comparison(rows, tuple(self.unmatched.items()), output, self.batches, note, self.times)

    def _milliseconds(self, site: Site) -> float | None:
        """Of all steps that belong to a site."""
        times = self.times.steps if self.times is not None else {}
        found = [times[name] for name in (site.step.name, *site.way) if name in times]
        return sum(found) if found else None


def _repeats(site: Site, tally: Tally) -> bool:
    """Whether it is the floats of an int8 value that has a row of its own, and adds no error to it."""
    return site.computed is site.step and site.step.rounds == "dequantize" and not tally.own


def _row(site: Site, tally: Tally, ms: float | None) -> NodeError:
    dead, dead_in_float = tally.dead
    weight = weight_histogram(site.weight) if site.weight is not None else None
    return NodeError(
        name=site.computed.name, op=site.computed.op, computes=site.computes, module_path=site.step.module_path,
        location=site.step.location, origin=site.step.origin,
        sqnr=tally.decibels(tally.noise), own=tally.decibels(tally.own), own_channel=tally.own_of_channels,
        inherited=tally.decibels(tally.inherited), max_abs=tally.max_abs, saturation=tally.clipped / tally.count if tally.count else 0.0,
        unused=tally.unused, dead_channels=dead, dead_in_float=dead_in_float, ms=ms,
        activation=tally.values.histogram(tally.grid), weight=weight,
    )  # fmt: skip
