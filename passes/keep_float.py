"""An op without weights whose result no int8 op gains from stays float: whoever reads it takes floats, seen through copies.

Four kinds of readers take floats.

* Results of the model, and ops that stay float. Rounding a value that nobody computes with in int8 saves nothing and costs what
  8 bits cost: boxes in pixels that are joined with scores of 0 to 1 get one step, and the scores become 0; scores below 1/256 do so
  alone. So the last sigmoids, sums and cats compute floats from what the last layers hand out. A sigmoid that is a result is float
  also where int8 ops use it: it is rounded for them alone.
* Normalizations, softmax and matmul, which compute in float whatever their input is: the residual stream and the attention of a
  transformer, with the masks that are added to its scores. A residual stream has few values far larger than the rest, which leave 8
  bits nothing for the others (ViT-B/16: 6 dB with int8 sums, 27 dB without); a class token is small beside the patches that it is
  joined with (deit3_small: 13 dB with an int8 cat, 30 dB without); a softmax over 1,500 tokens has no value above the half step of
  1/512.
* Quotients by constants of which the largest is UNEVEN times the smallest: statistics of channels, which bring values of unlike size to
  one, and with them the step that all share (csatv2 of timm, a DCT and its normalization: 2.7 dB, with a float quotient 25.9).
* Roots, logarithms and reciprocals, which make small values large: of a square in int8, whose step is that of the largest, they find
  nothing below. The magnitude of a spectrum (sqrt(re ** 2 + im ** 2)) had 9.9 dB in int8, in front of a trained speech detector.

Ops that multiply and add without weights (matmul) stay int8 in front of results, as do ops that only move values or pick them: what
they hand out is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.types import Stage, quant_of
from qcompiler.ops.affine import let_go
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.stays_float import DIVISORS, better_float, passes_on, readers, results_at, spread


@dataclass(frozen=True)
class KeepFloat:
    name: str = "keep_float"
    stage: Stage = Stage.OBSERVED
    required: bool = False
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        kept: dict[fx.Node, Obstacle] = {}
        changed = False
        quantized = results_at(gm.graph, context.settings.custom.output_quantized_indexes)
        for node in reversed(gm.graph.nodes):
            why = better_float(node, kept, quantized, context.table, context.target.computes_float)
            why = None if why is not None and _is_folded(node, why, context) else why
            if why is not None and context.allows(self.name, node):
                context.journal.matches += 1
                if quant_of(node).folded:
                    let_go(node)
                context.keep_float(self.name, node, why)
                kept[node], changed = why, True
            elif (told := passes_on(node, kept, context.table, context.target.computes_float)) is not None:
                kept[node] = told
        for node, why in spread(gm.graph, context.table) if changed else ():
            context.keep_float(self.name, node, why)
        return changed


def _is_folded(node: fx.Node, why: Obstacle, context: Context) -> bool:
    """Whether it is a quotient that becomes part of the op before it, for an int8 op: no value with unlike channels is rounded then.

    Of other floats the sums of that op are better rounded, if at all, than what a constant makes of them, which may make channels unlike.
    """
    return quant_of(node).folded and why is DIVISORS and bool(readers(node, context.table).int8)
