"""prepare_fx and prepare_qat_fx: a float model as its OBSERVED graph, a module that keeps what convert_fx needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx, nn

from qcompiler.choices import Choices, settings_for
from qcompiler.compile.pass_manager import Context, Pass, run_passes
from qcompiler.compile.settings import Settings
from qcompiler.debug.scope import watched
from qcompiler.executable.call_forms import join
from qcompiler.frontend import traced
from qcompiler.inputs.batches import call_examples
from qcompiler.inputs.checks import check_examples
from qcompiler.inputs.fingerprint import fingerprints
from qcompiler.inputs.kinds import module_of
from qcompiler.ir.items import ITEMS, items_of
from qcompiler.ir.names import user_path
from qcompiler.ir.types import Stage
from qcompiler.ops.state_nodes import held_names
from qcompiler.passes import pipeline_for
from qcompiler.prepared.decide_again import Fused
from qcompiler.prepared.float_state import FloatState
from qcompiler.prepared.module import STATE, State, as_prepared, user_attributes

Examples = tuple[Any, Any]  # positional arguments of a call, and keywords or a list of forms


def prepare(
    model: nn.Module, examples: Examples, choices: Choices, passes: Sequence[Pass], debug: object, trains: bool = False
) -> fx.GraphModule:  # fmt: skip
    """The OBSERVED graph of a copy of the model; of several forms of the call, a module with a graph for each."""
    model = module_of(model)

    def of_form(inputs: object, kwargs: Mapping[str, object] | None) -> fx.GraphModule:
        return _prepared(model, settings_for(model, trains, **choices), (inputs, kwargs), passes, debug)

    inputs, kwargs = examples
    if not isinstance(kwargs, (list, tuple)):
        return of_form(inputs, kwargs)
    forms = [of_form(*example) for example in call_examples(inputs, kwargs)]
    return join(forms, "prepared", forms[0].meta[STATE].user_attributes)  # type: ignore[return-value]


def _prepared(model: nn.Module, settings: Settings, examples: Examples, passes: Sequence[Pass], debug: object) -> fx.GraphModule:
    (inputs, kwargs), context, name = examples, Context(settings), type(model).__name__
    gm = traced(model, inputs, context, kwargs)
    with watched(debug, "prepare", name, context):
        pipeline = pipeline_for(settings).with_passes(passes)
        run_passes(gm, pipeline.fuse, Stage.TRACED, context, recompile=False)
        fused = Fused() if settings.trains else Fused.of(gm, context.journal, settings)
        run_passes(gm, pipeline.observe, Stage.FUSED, context)
    example = (check_examples(inputs), dict(kwargs or {}))
    observed = tuple(settings.custom.observed_classes.values())
    before = FloatState.of(gm, (path for path, _ in model.named_buffers()), settings.trains, observed)
    return as_prepared(gm, State(settings, context.journal, name, _kept(model, gm, settings), example, before, fused, fingerprints(model)))


def _kept(model: nn.Module, gm: fx.GraphModule, settings: Settings) -> dict[str, object]:
    """The user's attributes that the result goes on having."""
    held = {user_path(gm, path).partition(".")[0] for path in held_names(gm)}  # of these the graph has buffers
    kept = {key: value for key, value in user_attributes(model).items() if key not in held}
    kept |= {key: getattr(model, key) for key in settings.custom.preserved_attributes}
    if items := items_of(model):
        kept[ITEMS] = items
    return kept
