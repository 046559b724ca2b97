"""convert_fx and convert_to_reference_fx: a prepared module as an int8 module, or as its QUANTIZED graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx

from qcompiler.artifact.graph_note import GRAPH, Draft
from qcompiler.artifact.notes import REMARKS, SAMPLE
from qcompiler.backends import Model, backend_of
from qcompiler.backends.build_step import BuildModule
from qcompiler.compile.journal import Remark
from qcompiler.compile.pass_manager import Context, run_last, run_passes, tell_built
from qcompiler.compile.settings import Settings
from qcompiler.config.corrections import Corrections
from qcompiler.config.custom_config import ConvertCustomConfig, as_config, check_attributes
from qcompiler.debug.explain import Explanation, explanation_of
from qcompiler.debug.parity import require_parity
from qcompiler.debug.scope import watched
from qcompiler.errors import QCompilerError
from qcompiler.executable import Executable
from qcompiler.executable.call_forms import CallForms, join
from qcompiler.executable.noted import ROWS
from qcompiler.fake_quantize import FakeQuantizeBase
from qcompiler.inputs.checks import MARK
from qcompiler.inputs.fingerprint import WEIGHTS
from qcompiler.ir.check_state import guard_loading
from qcompiler.ir.types import Stage
from qcompiler.observers.ranges import WIDE, WIDE_RANGE
from qcompiler.passes import pipeline_for
from qcompiler.prepared.module import State, required_state, user_attributes
from qcompiler.prepared.observed_copy import observed_copy
from qcompiler.target import Target
from qcompiler.workflow.calibration_remarks import calibration_remarks
from qcompiler.workflow.decisions import check_decisions
from qcompiler.workflow.start_convert import Asked, asked_of, chosen_backend, decide

NOT_SIMULATED = "nothing in the model is fake-quantized, so training was that of the float model: no rounding was learned"


@dataclass(frozen=True)
class Conversion:
    """How to convert, as the arguments of convert_fx say it. `shares`: what stays float is the prepared module's own (observed_copy)."""

    allow_uncalibrated: str = "error"
    debug: object = None
    backend: str | None = None
    custom: Any = None
    check_parity: bool = True
    shares: bool = False


def convert(prepared: Any, keep_float: Iterable[str], how: Conversion, corrections: Corrections | None = None) -> Executable:
    """The int8 module of a calibrated or trained one; of several forms of the call, one that has a module for each."""
    if how.backend is not None:
        backend_of(how.backend)
    asked = asked_of(prepared, keep_float, corrections)
    made: Executable = _each_form(prepared, lambda form: _converted(form, asked, how), "converted")
    return made


def reference(prepared: Any, keep_float: Iterable[str], how: Conversion, corrections: Corrections | None = None) -> fx.GraphModule:
    """The QUANTIZED graph of a calibrated or trained module; of several forms of the call, a module with a graph for each."""
    asked = asked_of(prepared, keep_float, corrections)
    asked = asked if how.shares else asked.copied()
    made: fx.GraphModule = _each_form(prepared, lambda form: _quantized(form, asked, how), "reference")
    return made


def _each_form(prepared: Any, made_of: Callable[[Any], Any], stage: str) -> Any:
    """What is made of a prepared module, or of each form of the call, as one module; errors name the form."""
    if not isinstance(prepared, CallForms):
        return made_of(prepared)
    made = []
    for index, form in enumerate(prepared.call_forms):
        try:
            made.append(made_of(form))
        except QCompilerError as error:
            error.message = f"call form {index}, {prepared.spelled(index)}: {error.message}"
            raise
    return join(made, stage, user_attributes(prepared))


def quantized_for(prepared: Any, target: Target) -> tuple[fx.GraphModule, Settings]:
    """The QUANTIZED graph of a module that may be prepared for another target. ConfigError where that cannot have what was decided."""
    return _quantized(prepared, asked_of(prepared, (), None), Conversion(), target), required_state(prepared).settings


def _quantized(prepared: Any, asked: Asked, how: Conversion, target: Target | None = None) -> fx.GraphModule:
    gm, state = observed_copy(prepared, how.allow_uncalibrated, how.shares)
    settings = state.settings if target is None else state.settings.with_(target=target)
    if settings.target.backend != state.settings.target.backend:
        check_decisions(gm, state.settings, settings.target)
    context = Context(settings, state.journal)
    with watched(how.debug, "reference", state.name, context):
        setattr(gm, WEIGHTS, state.weights)
        decide(gm, state, context, asked)
        made = run_passes(gm, pipeline_for(context.settings).quantize, Stage.OBSERVED, context)
    guard_loading(made)
    return made


def _converted(prepared: Any, asked: Asked, how: Conversion) -> Executable:
    custom = as_config(how.custom, ConvertCustomConfig)
    copies = backend_of(how.backend or required_state(prepared).settings.target.backend).copies
    gm, state = observed_copy(prepared, how.allow_uncalibrated, shares=copies)
    asked = asked if copies else asked.copied()
    chosen, target = chosen_backend(gm, state.settings, how.backend)
    settings = state.settings.with_(quantized_classes=custom.observed_to_quantized_mapping.get("static", {}), target=target)
    context = Context(settings, state.journal, state.example if how.check_parity and not settings.trains else None)
    pipeline = pipeline_for(settings).with_lowering(chosen.passes)
    check_attributes(prepared, custom.preserved_attributes)
    kept = state.user_attributes | {name: getattr(prepared, name) for name in custom.preserved_attributes}
    with watched(how.debug, "convert", state.name, context):  # setting the lowered graph makes its code
        decide(gm, state, context, asked)
        context.journal.remarks += calibration_remarks(prepared, state)
        run_passes(gm, pipeline_for(context.settings).quantize, Stage.OBSERVED, context, recompile=False)
        explained, decided = explanation_of(gm.graph, settings.table), len(context.journal.floats)
        draft = Draft(gm, settings.table, settings.trains)
        run_passes(gm, pipeline.lower, Stage.QUANTIZED, context, recompile=False)
        step = BuildModule(chosen, Model(state.name, target, kept))
        run_last(step, gm, context)
        module = step.built()
        _note(module, explained.settled(context.journal.floats[decided:], context.journal.integers))
        tell_built(module, context)
    setattr(module, GRAPH, draft.note(module))
    setattr(module, MARK, "converted")
    setattr(module, WEIGHTS, state.weights)
    if how.check_parity and settings.trains:
        _check_parity(prepared, module, state, context)
    setattr(module, REMARKS, [remark.to_data() for remark in context.journal.remarks])
    return module


def _note(module: Executable, explanation: Explanation) -> None:
    """Writes on the module what every report of it reads."""
    setattr(module, ROWS, explanation.to_data())
    setattr(module, SAMPLE, explanation.sample.to_data())


def _check_parity(prepared: Any, module: Executable, state: State, context: Context) -> None:
    """Raises PassError where the int8 module does not do what training simulated; notes what was found."""
    if state.example is None:
        return
    wide = [remark.node for remark in context.journal.remarks if remark.code == WIDE_RANGE]
    found = require_parity(prepared, module, state.example, f"of %{wide[0]}, {WIDE}; leave its reduce_range open" if wide else "")
    context.journal.remarks.append(Remark("parity", "parity", str(found)))
    if not any(isinstance(module, FakeQuantizeBase) for module in prepared.modules()):
        context.journal.remarks.append(Remark("parity", "not-simulated", NOT_SIMULATED))
