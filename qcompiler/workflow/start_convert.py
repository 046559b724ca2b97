"""What convert_fx does before its passes: a copy to work on, the back end to build for, and decisions that are taken again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import fx

from qcompiler.backends import Backend, backend_of
from qcompiler.compile.pass_manager import Context
from qcompiler.compile.settings import Settings
from qcompiler.config.corrections import NO_CORRECTIONS, Corrections
from qcompiler.errors import ConfigError
from qcompiler.executable.call_forms import forms_of
from qcompiler.ir.types import QUANT, Mode, quant_of
from qcompiler.ops.spec import Family
from qcompiler.passes import pipeline_for
from qcompiler.prepared.decide_again import decide_again
from qcompiler.prepared.module import State, required_state
from qcompiler.target import Target
from qcompiler.workflow.check_corrections import check_corrections
from qcompiler.workflow.decisions import Narrowed, check_decisions, refused
from qcompiler.workflow.kept_names import check_known, named_nodes


@dataclass(frozen=True)
class Asked:
    """What the user asks for beside what was decided: ops that stay float, by names, and corrections."""

    keep_float: tuple[str, ...] = ()
    corrections: Corrections = NO_CORRECTIONS

    def copied(self) -> Asked:
        """With tensors of its own, for a graph that is given away: passes put those of the corrections into it as they are."""
        codes, weights = ({name: t.clone() for name, t in held.items()} for held in (self.corrections.codes, self.corrections.weights))
        return replace(self, corrections=replace(self.corrections, codes=codes, weights=weights))


def asked_of(prepared: object, keep_float: Iterable[str], corrections: Corrections | None) -> Asked:
    """Raises ConfigError for names that mean nothing in any form of the call, and for a model that was trained."""
    given = NO_CORRECTIONS if corrections is None else corrections
    if not isinstance(given, Corrections):
        raise ConfigError(f"corrections are a qcompiler.tune.Corrections, not a {type(given).__name__}", code="correction")
    check_corrections(prepared, given)
    names_to_keep(prepared, given.dynamic, "dynamic of corrections")
    own = [keep_float] if isinstance(keep_float, str) else list(keep_float)
    return Asked(tuple(names_to_keep(prepared, dict.fromkeys((*own, *sorted(given.keep_float))))), given)


def names_to_keep(prepared: object, keep_float: Iterable[str], what: str = "keep_float") -> list[str]:
    """The names of `keep_float`. ConfigError for names that mean nothing in any form of the call, and for a model that was trained."""
    names = [keep_float] if isinstance(keep_float, str) else list(keep_float)
    states = [required_state(form) for form in forms_of(prepared)] if names else []
    if any(state.settings.trains for state in states):
        raise ConfigError(f"{what} is for calibrated models: this one was trained with its values rounded", code="keep-float",
                          hint="give those modules a qconfig of None, prepare_qat_fx and train again")  # fmt: skip
    meant = [name for state in states for name in nodes_meant(state, names)]
    check_known(names, meant, [name for state in states for name in (*state.settings.module_types, *state.fused.sources)], what)
    return names


def nodes_meant(state: State, names: Iterable[str]) -> dict[str, frozenset[str]]:
    """The nodes that each name means, by name; those that mean something in other forms of the call alone are left out."""
    return named_nodes(names, state.fused.sources, state.settings.module_types)


def decide(gm: fx.GraphModule, state: State, context: Context, asked: Asked) -> None:
    """Takes the decisions again where ops are to stay float: for the user, or since another back end has no form of them.

    Names that mean something in other forms of the call alone are left out.
    """
    context.settings = context.settings.with_(corrections=asked.corrections)
    meant, target = nodes_meant(state, asked.keep_float), context.settings.target
    dynamic = _dynamic(state, asked.corrections.dynamic)
    other = not context.settings.trains and target != state.settings.target and refused(gm, state.settings, target)
    if not meant and not dynamic and not other:
        return
    decides = Narrowed(state.settings.target, target) if other else state.settings.target
    context.settings = context.settings.with_(keep_float=frozenset().union(*meant.values()), dynamic=dynamic, target=decides)
    context.journal = state.fused.journal.continued()
    for name, nodes in meant.items():
        if not nodes:
            context.remark("convert", "keep-float-unused", f"keep_float {name!r} names no op: what it names was fused into others")
    decide_again(gm, state.fused, pipeline_for(context.settings), context)
    context.settings = context.settings.with_(target=target)
    _note_dynamic(gm, context)


def _dynamic(state: State, names: Iterable[str]) -> frozenset[str]:
    """The nodes of the linears that these names mean. Raises ConfigError for a name without any."""
    rows = [row for row in state.settings.table.rows.values() if row.settled.family is Family.LINEAR]
    linears = {name for op, name, target, _, _ in state.fused.graph if op == "call_function" and any(row.fn is target for row in rows)}
    meant = nodes_meant(state, names)
    none = next((name for name, nodes in meant.items() if not nodes & linears), None)
    if none is not None:
        raise ConfigError(
            f"corrections make {none!r:.80} dynamic, and it has no linear", code="correction", hint="linears alone can be dynamic"
        )
    return frozenset[str]().union(*meant.values()) & linears


def _note_dynamic(gm: fx.GraphModule, context: Context) -> None:
    for node in gm.graph.nodes:
        if node.name in context.settings.dynamic and quant_of(node).mode is Mode.DYNAMIC:
            node.meta[QUANT] = quant_of(node).with_(corrected=("dynamic",))
            context.remark("convert", "corrected", "corrections round its input at run time", node)


def chosen_backend(gm: fx.GraphModule, settings: Settings, name: str | None) -> tuple[Backend, Target]:
    """The back end to build for, and its target. Raises ConfigError for one that builds nothing, or cannot have what was decided."""
    chosen = backend_of(name or settings.target.backend)
    if chosen.build is None:
        raise ConfigError(f"the back end {chosen.name} builds no modules", code="backend",
                          hint="convert_to_reference_fx(prepared) gives its graph; backend= names another one")  # fmt: skip
    if chosen.name == settings.target.backend:
        return chosen, settings.target
    target = chosen.target(None, None)
    check_decisions(gm, settings, target)
    return chosen, target
