"""A cat has one step for all its parts, a sum one for all that are cut from it: each part is judged by what calibration leaves of it.

A part whose own range is n steps of the whole has at best 20 log10(n) dB of its own: that of values spread evenly over the range,
r**2 / 12 of power against s**2 / 12 of noise with n = r / s. Below LEAST steps it is lost, whatever the whole looks like. What int8
ops with weights read whole has to be on one scale, so for them there is a remark alone. Where others read the value as well (results,
float ops, ops without weights, which are float then as well) or only some of it (the patches behind a class token), it is computed from
floats, and rounded for the ops with weights alone: the part comes out as it went in. So are the ops without weights before it that
nobody else wants in int8: a sum of a residual stream is worth no more than the one that it takes. What is read in parts has a range for
each part (ops/parts.py); without a lost part all get the range of the whole.

A class token that a residual stream carries beside its patches had 5 dB behind int8 sums (coat_lite_tiny of timm), and has 27 behind
float ones.

(A value that no int8 op reads is float from the start: keep_float.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.groups import members_of
from qcompiler.ir.types import QUANT, QParams, Stage, quant_of, value_of
from qcompiler.ops.arguments import activations
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.parts import Part, parts_of
from qcompiler.ops.spec import Output
from qcompiler.ops.stays_float import FLOATS, Readers, better_float, readers, results_at, spread

LEAST = 16  # steps, 4 bits: 24 dB at best
NAME = "judge_parts"
MADE_FLOAT = ("lost-rows", "lost-cut")  # by judge_rows and judge_cuts
Lost = Mapping[fx.Node, Obstacle]


@dataclass(frozen=True)
class JudgeParts:
    name: str = NAME
    stage: Stage = Stage.OBSERVED
    required: bool = True  # share_qparams kept the parts apart: here they get the qparams of the whole
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        quantized = results_at(gm.graph, context.settings.custom.output_quantized_indexes)
        lost = {node: FLOATS for node in gm.graph.nodes if quant_of(node).code in MADE_FLOAT}
        begun, united = len(lost), False
        for node in reversed(gm.graph.nodes):
            if not _may_lose(node, context):
                continue
            parts = parts_of(gm, node, context.table)
            why = _judged(node, parts, lost, quantized, context)
            if why is None:
                united |= _unite(gm, node, parts)
            else:
                lost[node] = why
                context.keep_float(NAME, node, why)
        spreading = list(_spread(gm, context)) if lost else []
        return len(lost) > begun or bool(spreading) or united


def _spread(gm: fx.GraphModule, context: Context) -> Iterator[fx.Node]:
    for node, why in spread(gm.graph, context.table):
        context.keep_float(NAME, node, why)
        yield node


def _may_lose(node: fx.Node, context: Context) -> bool:
    """Whether it is an int8 op of its own range without weights, so that its parts have what scale calibration found for it."""
    row, quant = context.table.of(node), quant_of(node)
    return row is not None and row.weight is None and row.output in (Output.JOIN, Output.OWN) and quant.int8 and quant.qparams is not None


def _judged(node: fx.Node, parts: Sequence[Part], lost: Lost, quantized: Sequence[fx.Node], context: Context) -> Obstacle | None:
    """Why the node is float; None where no part is lost, or int8 ops with weights read all of it. `lost`: what is float of later ones."""
    found, text = readers(node, context.table), _lost(node, parts, context)
    why = (
        better_float(node, lost, quantized, context.table, context.target.computes_float)
        if any(user in lost for user in found.floats)
        else None
    )
    if text is not None and not any(value in quantized for value in (node, *found.copies)) and _gains(node, found, context):
        why = Obstacle("unlike-parts", f"{text}, and not only ops with weights that take all of it use its result")
    if why is not None and context.allows("keep_float", node):
        context.journal.matches += 1
        return why
    if text is not None:
        context.remark(NAME, "unlike-parts", f"{text} for the int8 ops that use its result", node)
    return None


def _gains(node: fx.Node, found: Readers, context: Context) -> bool:
    """Whether not only ops with weights, and cats, read the value, all of it."""
    whole = math.prod(value_of(node).shape or ())

    def elsewhere(user: fx.Node, value: fx.Node) -> bool:
        row = context.table.of(user)
        computes = row is not None and row.weight is None and row.output is not Output.JOIN
        return computes or math.prod(value_of(value).shape or (whole,)) < whole

    return bool(found.floats) or any(elsewhere(user, value) for user, value in found.int8)


def _unite(gm: fx.GraphModule, node: fx.Node, parts: Sequence[Part]) -> bool:
    """Gives the parts in which a value is read the value's own qparams."""
    quant = quant_of(node)
    apart = [first for part in parts for first in part.nodes if quant.group is not None and quant_of(first).group != quant.group]
    members = members_of(gm.graph) if apart else {}
    for first in apart:
        for member in members[quant_of(first).group]:  # type: ignore[index]
            member.meta[QUANT] = quant_of(member).with_(qparams=quant.qparams, group=quant.group)
    return bool(apart)


def steps_of(part: QParams, whole: QParams) -> float:
    """How many steps of the whole's scale the range of a part has; both per tensor."""
    assert isinstance(whole.scale, float)
    low, high = part.range
    return (high - low) / whole.scale


def _lost(node: fx.Node, parts: Sequence[Part], context: Context) -> str | None:
    """What the scale of an int8 value costs the worst of its parts, where that is too much."""
    row, whole = context.table.of(node), quant_of(node).qparams
    if row is None or whole is None:
        return None
    joined = activations(context.table, node) if row.output is Output.JOIN else [first for part in parts for first in part.nodes]
    known = [(steps_of(p, whole), value) for value in joined if (p := quant_of(value).qparams) is not None]
    steps, part = min(known, key=lambda pair: pair[0], default=(math.inf, node))
    if steps >= LEAST:
        return None
    left = f"at best {20 * math.log10(steps):.0f} dB" if steps > 1 else "nothing"
    total = whole.quant_max - whole.quant_min
    return f"the range of its part %{part.name} is {steps:.2g} of the {total} steps that all parts share, so {left} of it is left"
