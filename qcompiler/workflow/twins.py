"""The QUANTIZED graph of a prepared model beside the same graph in float: nodes that compute have the same names in both."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import fx

from qcompiler.compile.pass_manager import Context, run_passes
from qcompiler.compile.settings import Settings
from qcompiler.config.corrections import Corrections
from qcompiler.executable.call_forms import forms_of
from qcompiler.ir.graph_module import OwnGraphModule
from qcompiler.ir.names import NAMES
from qcompiler.ir.types import Stage, quant_of
from qcompiler.observers.watch import Watch
from qcompiler.passes import pipeline_for
from qcompiler.passes.freeze_qparams import FreezeQParams
from qcompiler.passes.insert_quantize_dequantize import InsertQuantizeDequantize
from qcompiler.prepared.observed_copy import observed_copy
from qcompiler.workflow.start_convert import Asked, asked_of, decide


@dataclass(frozen=True)
class Twin:
    """One form of the call. `floats` has the float values of the weights that `quantized` has as integers, under the same names.

    `measured`: the groups of values whose range is calibration's: others have the one that an op fixes. `groups`: of values by the names
    that corrections have for them: a part of a result that is scaled has another one in `quantized`.
    """

    floats: fx.GraphModule
    quantized: fx.GraphModule
    settings: Settings
    measured: frozenset[int]
    groups: Mapping[str, int]


def twins(prepared: object, corrections: Corrections | None = None) -> list[Twin]:
    """Both graphs for each form of the call, with the corrections. Float weights are the prepared module's own where corrections give no
    others. Raises what convert_to_reference_fx does; changes nothing."""
    asked = asked_of(prepared, (), corrections)
    return [_twin(form, asked) for form in forms_of(prepared)]


def _twin(prepared: object, asked: Asked) -> Twin:
    gm, state = observed_copy(prepared, "error", shares=True)
    context = Context(state.settings, state.journal)
    decide(gm, state, context, asked)
    passes = pipeline_for(context.settings).quantize
    frozen, at = (next(i for i, step in enumerate(passes) if isinstance(step, kind)) for kind in (FreezeQParams, InsertQuantizeDequantize))
    run_passes(gm, passes[:frozen], Stage.OBSERVED, context)
    measured = frozenset(_measured(gm))
    groups = {node.name: group for node in gm.graph.nodes if (group := quant_of(node).group) is not None}
    run_passes(gm, passes[frozen:at], Stage.OBSERVED, context)
    floats = OwnGraphModule(gm, copy.deepcopy(gm.graph))
    floats.meta[NAMES] = gm.meta.get(NAMES, {})
    run_passes(gm, passes[at:], Stage.OBSERVED, context)
    return Twin(floats, gm, context.settings, measured, groups)


def _measured(gm: fx.GraphModule) -> Iterator[int]:
    for node in gm.graph.nodes:
        watch = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(watch, Watch) and not watch.is_spare and watch.observer.gives_qparams and watch.observer.measures:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            group = quant_of(source).group
            if group is not None:
                yield group
