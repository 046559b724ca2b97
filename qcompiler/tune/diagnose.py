"""What the noise of a quantized model comes from: its weights alone, with float values, and its values alone, with float weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import fx, nn

from qcompiler.ir.attributes import attribute, get_attr, set_attribute
from qcompiler.ir.graph_module import OwnGraphModule
from qcompiler.ops.reference import dequantize_weight
from qcompiler.tune.let_go import let_go, twins_for_now
from qcompiler.tune.score import Judge, Score
from qcompiler.tune.sites import Site, sites
from qcompiler.workflow.twins import Twin

LIMITS = 0.1  # share of the noise from which on something is worth a step: all of it gone gains 0.5 dB


@dataclass(frozen=True)
class Diagnosis:
    """`weights`, `values`: what the model is with one of the two rounded alone."""

    default: Score
    weights: Score
    values: Score

    def __str__(self) -> str:
        return f"weights alone {self.weights.sqnr:.1f} dB, values alone {self.values.sqnr:.1f} dB, both {self.default.sqnr:.1f} dB"


def diagnose(prepared: object, judge: Judge, default: Score) -> Diagnosis | None:
    """None for a model of several forms of the call, whose graphs are not told apart."""
    with twins_for_now(prepared) as made:
        if len(made) != 1:
            return None
        rounded = _weights_alone(made[0])
        weights = judge.score(rounded)
        let_go(made[0].floats, rounded)
        return Diagnosis(default, weights, judge.score(values_alone(made[0])))


def _weights_alone(twin: Twin) -> nn.Module:
    """The float graph on the real numbers of the integers. What was there stays for `values_alone` in the twin's own modules."""
    made = OwnGraphModule(twin.floats, copy.deepcopy(twin.floats.graph))
    for site in sites(twin):
        at = site.call.op.weight or 0
        given, rounded = site.twin.args[at], site.node.args[at]
        assert isinstance(given, fx.Node) and isinstance(rounded, fx.Node)
        held = [attribute(twin.quantized, str(x.target)) if isinstance(x, fx.Node) else x for x in rounded.args]
        set_attribute(made, str(given.target), dequantize_weight(*held))  # type: ignore[arg-type]
    return made


def values_alone(twin: Twin) -> fx.GraphModule:
    """The quantized graph on float weights. The twin's own is changed for it."""
    gm = twin.quantized
    for site in list(sites(twin)):
        _put_float(gm, twin, site)
    gm.recompile()
    return gm


def _put_float(gm: fx.GraphModule, twin: Twin, site: Site) -> None:
    at = site.call.op.weight or 0
    given = site.twin.args[at]
    assert isinstance(given, fx.Node)
    path = f"{site.path}_as_float"
    set_attribute(gm, path, attribute(twin.floats, str(given.target)).detach())
    with gm.graph.inserting_before(site.node):
        site.node.update_arg(at, get_attr(gm, path))
