"""A mean has its input's scale; where that leaves too little of it, because the values cancel, it gets one of its own.

Means of many values were observed for themselves (share_qparams). Below LEAST steps of the input's scale (judge_parts says what a step is
worth) the mean is computed in float from the int8 values, whose own rounding it averages, and rounded on its own range where int8 ops
take it. Other means take the scale of their input, which costs nothing.

A mean over a volume of values of both signs, in front of a small convolution, had 14 dB and spoiled all that followed (16.9 dB; with a
range of its own 29.4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.groups import join, members_of
from qcompiler.ir.types import Stage, quant_of
from qcompiler.ops.averages import averages_many
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.stays_float import results_at, spread

LEAST = 16  # steps, as of a part (judge_parts)


@dataclass(frozen=True)
class JudgeAverages:
    name: str = "judge_averages"
    stage: Stage = Stage.OBSERVED
    required: bool = True  # share_qparams kept means apart: here they get the qparams of their input
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        quantized = results_at(gm.graph, context.settings.custom.output_quantized_indexes)
        means = [node for node in gm.graph.nodes if averages_many(node, context.table) and _is_apart(node)]
        members = members_of(gm.graph) if means else {}
        for node in means:
            text = _lost(node)
            group = quant_of(node).group
            assert group is not None
            if text and not any(value in quantized for value in members[group]) and context.allows("keep_float", node):
                context.journal.matches += 1
                context.keep_float(self.name, node, Obstacle("lost-average", text))
                continue
            join(members, node, node.args[0])  # type: ignore[arg-type]
        for node, why in spread(gm.graph, context.table) if means else ():
            context.keep_float(self.name, node, why)
        return bool(means)


def _is_apart(node: fx.Node) -> bool:
    source = node.args[0]
    return isinstance(source, fx.Node) and quant_of(source).qparams is not None and quant_of(source).group != quant_of(node).group


def _lost(node: fx.Node) -> str | None:
    own, shared = quant_of(node).qparams, quant_of(node.args[0]).qparams  # type: ignore[arg-type]
    assert own is not None and shared is not None and isinstance(shared.scale, float)
    low, high = own.range
    steps = (high - low) / shared.scale
    if steps >= LEAST:
        return None
    left = f"at best {20 * math.log10(steps):.0f} dB" if steps > 1 else "nothing"
    return f"its range is {steps:.2g} of the {shared.quant_max - shared.quant_min} steps of its input, so {left} of it is left"
