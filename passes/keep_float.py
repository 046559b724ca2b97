"""An op without weights whose result no int8 op gains from stays float: whoever reads it takes floats, seen through copies.

Three kinds of readers take floats.

* Results of the model, and ops that stay float. Rounding a value that nobody computes with in int8 saves nothing and costs what
  8 bits cost: boxes in pixels that are joined with scores of 0 to 1 get one step, and the scores become 0; scores below 1/256 do so
  alone. So the last sigmoids, sums and cats compute floats from what the last layers hand out. A sigmoid that is a result is float
  also where int8 ops use it: it is rounded for them alone.
* Normalizations, softmax and matmul, which compute in float whatever their input is: the residual stream and the attention of a
  transformer, with the masks that are added to its scores. A residual stream has few values far larger than the rest, which leave 8
  bits nothing for the others (ViT-B/16: 6 dB with int8 sums, 27 dB without); a class token is small beside the patches that it is
  joined with (deit3_small: 13 dB with an int8 cat, 30 dB without); a softmax over 1,500 tokens has no value above the half step of
  1/512.
* Roots, logarithms and reciprocals, which make small values large: of a square in int8, whose step is that of the largest, they find
  nothing below. The magnitude of a spectrum (sqrt(re ** 2 + im ** 2)) had 9.9 dB in int8, in front of a trained speech detector.

Ops that multiply and add without weights (matmul) stay int8 in front of results, as do ops that only move values or pick them: what
they hand out is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from qcompiler.ir.types import Stage, quant_of
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.spec import Op, Output
from qcompiler.ops.stays_float import Readers, readers, results_at, spread
from qcompiler.pass_manager import Context

FLOATS = Obstacle("float-readers", "no int8 op uses its result")
RESULT = Obstacle("result", "it is a result of the model, whose small values 8 bits of its fixed range would make 0")
USERS = Obstacle("float-users", "only ops that compute in float, such as normalizations, use its result")
STEEP = Obstacle("steep-users", "only ops that make small values large, such as sqrt and log, use its result")


@dataclass(frozen=True)
class KeepFloat:
    name: str = "keep_float"
    stage: Stage = Stage.OBSERVED
    required: bool = False
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        kept: dict[fx.Node, Obstacle] = {}
        quantized = results_at(gm.graph, context.custom.output_quantized_indexes if context.custom is not None else ())
        for node in reversed(gm.graph.nodes):
            why = _reason(node, kept, quantized, context)
            if why is not None and context.allows(self.name, node):
                context.matches += 1
                context.keep_float(self.name, node, why)
                kept[node] = why
        for node, why in spread(gm.graph, context.table) if kept else ():
            context.keep_float(self.name, node, why)
        return bool(kept)


def _reason(node: fx.Node, kept: Mapping[fx.Node, Obstacle], quantized: Sequence[fx.Node], context: Context) -> Obstacle | None:
    """Why the node's op stays float, None where an int8 op reads its result and gains from that, or the caller wants it quantized."""
    row = context.table.of(node)
    if row is None or not quant_of(node).int8 or row.weight is not None or not _rounds(row, node):
        return None
    found = readers(node, context.table)
    if any(value in quantized for value in (node, *found.copies)):
        return None
    reasons = _reasons(found, kept, context)
    if None in reasons:
        return RESULT if row.output is Output.FIXED and any(user.op == "output" for user in found.floats) else None
    why = next((r for r in (STEEP, USERS, FLOATS) if r in reasons), FLOATS)
    return None if why is FLOATS and row.macs is not None else why


def _rounds(row: Op, node: fx.Node) -> bool:
    """Whether the op's result is no value of its input, so that int8 rounds it anew."""
    return row.output in (Output.OWN, Output.FIXED, Output.JOIN) or (row.output is Output.SAME and row.averages(node.kwargs))


def _reasons(found: Readers, kept: Mapping[fx.Node, Obstacle], context: Context) -> list[Obstacle | None]:
    """Why each reader is better off with floats; None where it is not."""
    return [*(kept.get(user, FLOATS) for user in found.floats),
            *(_takes_float(user, value, context) for user, value in found.int8)]  # fmt: skip


def _takes_float(user: fx.Node, value: fx.Node, context: Context) -> Obstacle | None:
    row = context.table.of(user)
    if row is None:
        return None
    steep = any(row.spreads(user.kwargs, i) for i, argument in enumerate(user.args) if argument is value)
    return USERS if context.target.computes_float(row) else STEEP if steep else None
