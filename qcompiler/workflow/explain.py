"""explain and remarks: what the compiler has to say of a prepared, converted or loaded module."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx

from qcompiler.artifact.notes import REMARKS, SAMPLE
from qcompiler.compile.journal import Remark
from qcompiler.debug.explain import Explanation, explanation_of
from qcompiler.errors import ConfigError
from qcompiler.executable import Executable
from qcompiler.executable.call_forms import CallForms
from qcompiler.executable.integers import Scales
from qcompiler.executable.noted import ROWS
from qcompiler.inputs.checks import MARK
from qcompiler.prepared.module import State, required_state
from qcompiler.workflow.calibration_remarks import calibration_remarks


def _compiled_state(model: object, what: str) -> State:
    """The state of a prepared module; the ConfigError for any other names `what` was called."""
    if getattr(model, MARK, None) is None:
        text = f"{what} takes a prepared, converted or loaded model; nothing has been done to this {type(model).__name__}"
        raise ConfigError(text, code="not-prepared", hint="pass what prepare_fx, convert_fx, quantize or load returned")
    if getattr(model, MARK, None) == "converted":
        raise ConfigError(f"this module has lost the notes that {what} reads", code="no-notes", hint="convert the model anew")
    return required_state(model)


def explain(model: Any) -> Explanation:
    """Which ops run in int8 and which in float, with the reason, for a prepared, converted or loaded module."""
    if isinstance(model, CallForms):
        found = [replace(row, node=f"{i}.{row.node}") for i, form in enumerate(model.call_forms) for row in explain(form).rows]
        return Explanation(tuple(found))
    rows = getattr(model, ROWS, None)
    if rows is not None:
        return Explanation.from_data(rows, getattr(model, SAMPLE, None))
    state = _compiled_state(model, "explain")
    return explanation_of(model.graph, state.settings.table)


def scales(model: object) -> Scales:
    """How a converted or loaded module holds its values and weights: scale, zero point, range, dtype by value and layer, weight codes.

    Exact numbers, those that its kernels compute with. `scales(m).values["conv"].scale`, `scales(m).weights["conv.weight"].codes`,
    `scales(m).of_layer("features.0")`, `scales(m).to_json()`. ConfigError for anything else, and for a model of several call forms, each
    of which has values of its own: scales(model.call_forms[0]).
    """
    if isinstance(model, Executable):
        return model._scales()
    several = isinstance(model, CallForms)
    what = f"a model of {len(model.call_forms)} call forms" if isinstance(model, CallForms) else f"a {type(model).__qualname__}"
    raise ConfigError(f"scales takes what convert_fx, quantize or load returned, not {what}", code="no-scales",
                      hint="give one of them: model.call_forms[0]" if several else "convert_fx(prepared) first")  # fmt: skip


def remarks(model: object) -> list[Remark]:
    """What the compiler noted of a prepared, converted or loaded module: not fused, kept float, made concrete, and why."""
    if isinstance(model, CallForms):
        return list({str(remark.to_data()): remark for form in model.call_forms for remark in remarks(form)}.values())
    data = getattr(model, REMARKS, None)
    if data is not None:
        return [Remark.from_data(entry) for entry in data]
    state = _compiled_state(model, "remarks")
    return [*state.journal.remarks, *(calibration_remarks(model, state) if isinstance(model, fx.GraphModule) else ())]
