"""Whether what corrections name is there, before a conversion begins."""

from __future__ import annotations

from collections.abc import Iterable

from qcompiler.config.corrections import Corrections, scaled_name
from qcompiler.errors import ConfigError
from qcompiler.executable.call_forms import forms_of
from qcompiler.inputs.near_names import near_names
from qcompiler.ir.names import user_path
from qcompiler.prepared.module import required_state

BESIDE = "_int8"  # what the integers of a weight are called whose floats are kept


def check_corrections(prepared: object, given: Corrections) -> None:
    """Raises ConfigError for a name that no form of the call knows, and for a model that was trained."""
    if not given:
        return
    nodes, tensors = set[str](), set[str]()
    for form in forms_of(prepared):
        _refuse_trained(form)
        nodes |= {node.name for node in form.graph.nodes}
        tensors |= {user_path(form, str(node.target)) for node in form.graph.nodes if node.op == "get_attr"}
    _check("weights", given.weights, tensors)
    _check("columns", given.columns, tensors)
    for part in (given.codes, given.scales):
        _check("codes and scales", (name.rstrip("_") if BESIDE in name else name for name in part), tensors | {n + BESIDE for n in tensors})
    scaled = {scaled_name(name) for name in nodes} if given.columns else set()
    _check("biases and ranges", (*given.biases, *(name for name in given.ranges if name not in scaled)), nodes)


def _refuse_trained(form: object) -> None:
    if required_state(form).settings.trains:
        raise ConfigError("corrections are for calibrated models: this one was trained with its values rounded", code="correction",
                          hint="training itself finds weights that round well")  # fmt: skip


def _check(part: str, names: Iterable[str], known: set[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        near = near_names(unknown[0], sorted(known))
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        hint = f"did you mean {', '.join(near)}?" if near else "corrections fit the model that they were made from"
        raise ConfigError(f"{part} of corrections name nothing in this model: {unknown[0]!r:.80}{more}", code="correction", hint=hint)
