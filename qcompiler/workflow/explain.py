"""explain and remarks: what the compiler has to say of a prepared, converted or loaded module."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qcompiler.artifact.notes import REMARKS, ROWS
from qcompiler.compile.journal import Remark
from qcompiler.debug.explain import Explanation, rows_of
from qcompiler.errors import ConfigError
from qcompiler.executable.call_forms import CallForms
from qcompiler.inputs.checks import MARK
from qcompiler.prepared.module import State, required_state


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
        return Explanation.from_data(rows)
    state = _compiled_state(model, "explain")
    return rows_of(model.graph.nodes, state.settings.table)


def remarks(model: object) -> list[Remark]:
    """What the compiler noted of a prepared, converted or loaded module: not fused, kept float, made concrete, and why."""
    if isinstance(model, CallForms):
        return list({str(remark.to_data()): remark for form in model.call_forms for remark in remarks(form)}.values())
    data = getattr(model, REMARKS, None)
    return list(_compiled_state(model, "remarks").journal.remarks) if data is None else [Remark.from_data(entry) for entry in data]
