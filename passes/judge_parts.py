"""A cat has one step for all its parts: after calibration each part is judged by what that step leaves of it.

A part whose own range is n steps of the cat's has at best 20 log10(n) dB of its own: that of values spread evenly over the range,
r**2 / 12 of power against s**2 / 12 of noise with n = r / s. Below LEAST steps it is lost, whatever the whole looks like. What int8
ops with weights read whole has to be on one scale, so for them there is a remark alone. Where others read the cat as well (results, float
ops, ops without weights, which are float then as well) or only some of it (the patches behind a class token), it is computed from
floats, and rounded for the ops with weights alone: the part comes out as it went in. What is read in parts has a range for each part
(ops/parts.py); without a lost part all get the cat's.

(A cat that no int8 op reads is float from the start: keep_float.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import fx

from qcompiler.ir.groups import members_of
from qcompiler.ir.types import QUANT, QParams, Stage, quant_of, value_of
from qcompiler.ops.arguments import activations
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.parts import parts_of
from qcompiler.ops.spec import Output
from qcompiler.ops.stays_float import Readers, readers, results_at, spread
from qcompiler.pass_manager import Context

LEAST = 16  # steps, 4 bits: 24 dB at best
NAME = "judge_parts"


@dataclass(frozen=True)
class JudgeParts:
    name: str = NAME
    stage: Stage = Stage.OBSERVED
    required: bool = True  # share_qparams kept the parts of a cat apart: here they get the cat's qparams
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        quantized = results_at(gm.graph, context.settings.custom.output_quantized_indexes)
        changed = united = False
        for cat in list(gm.graph.nodes):
            text = _lost(cat, context)
            if text is None:
                united |= _unite(gm, cat, context)
                continue
            found = readers(cat, context.table)
            wanted = any(value in quantized for value in (cat, *found.copies))
            if not wanted and _gains(cat, found, context) and context.allows("keep_float", cat):
                context.journal.matches += 1
                why = Obstacle("unlike-parts", f"{text}, and not only ops with weights that take all of it use its result")
                context.keep_float(NAME, cat, why)
                changed = True
            else:
                _unite(gm, cat, context)
                context.remark(NAME, "unlike-parts", f"{text} for the int8 ops that use its result", cat)
        for node, why in spread(gm.graph, context.table) if changed else ():
            context.keep_float(NAME, node, why)
        return changed or united


def _gains(cat: fx.Node, found: Readers, context: Context) -> bool:
    """Whether not only ops with weights, and cats, read the cat, all of it."""
    whole = math.prod(value_of(cat).shape or ())

    def elsewhere(user: fx.Node, value: fx.Node) -> bool:
        row = context.table.of(user)
        computes = row is not None and row.weight is None and row.output is not Output.JOIN
        return computes or math.prod(value_of(value).shape or (whole,)) < whole

    return bool(found.floats) or any(elsewhere(user, value) for user, value in found.int8)


def _unite(gm: fx.GraphModule, cat: fx.Node, context: Context) -> bool:
    """Gives the parts in which a cat is read the cat's own qparams."""
    quant, row = quant_of(cat), context.table.of(cat)
    if row is None or row.output is not Output.JOIN or not quant.int8 or quant.group is None:
        return False
    apart = [first for part in parts_of(gm, cat, context.table) for first in part.nodes if quant_of(first).group != quant.group]
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


def _lost(cat: fx.Node, context: Context) -> str | None:
    """What the scale of an int8 cat costs the worst of its parts, where that is too much."""
    row, whole = context.table.of(cat), quant_of(cat).qparams
    if row is None or row.output is not Output.JOIN or not quant_of(cat).int8 or whole is None:
        return None
    parts = [(steps_of(p, whole), value) for value in activations(context.table, cat) if (p := quant_of(value).qparams) is not None]
    steps, part = min(parts, key=lambda pair: pair[0], default=(math.inf, cat))
    if steps >= LEAST:
        return None
    left = f"at best {20 * math.log10(steps):.0f} dB" if steps > 1 else "nothing"
    total = whole.quant_max - whole.quant_min
    return f"the range of its part %{part.name} is {steps:.2g} of the {total} steps that all parts share, so {left} of it is left"
