"""Ops that feed only normalizations, softmax or matmul, or ops that stay float for that reason, stay float: the residual stream
and the attention of a transformer, with the masks that are added to its scores.

Those compute in float whatever their input is, so an int8 value before them saves nothing. And it costs: a residual stream has
few values far larger than the rest, which leave 8 bits nothing for the others (ViT-B/16: 6 dB with int8 sums, 27 dB without); a
class token is small beside the patches that it is joined with (deit3_small: 13 dB with an int8 cat, 30 dB without); a softmax over
1,500 tokens has no value above the half step of 1/512.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from qcompiler.ir.types import Stage, quant_of
from qcompiler.ops.arguments import activations
from qcompiler.ops.obstacles import FLOAT_INPUT, FLOAT_INPUTS, Obstacle
from qcompiler.ops.spec import Op, Output
from qcompiler.pass_manager import Context

USERS = Obstacle("float-users", "only ops that compute in float, such as normalizations, use its result")


@dataclass(frozen=True)
class KeepResidualsFloat:
    name: str = "keep_residuals_float"
    stage: Stage = Stage.OBSERVED
    required: bool = False
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        kept: set[fx.Node] = set()
        for node in reversed(gm.graph.nodes):
            if self._keep(node, kept, context):
                kept.add(node)
        for node in gm.graph.nodes if kept else ():
            self._follow(node, context)
        return bool(kept)

    def _keep(self, node: fx.Node, kept: set[fx.Node], context: Context) -> bool:
        row = context.table.of(node)
        if row is None or not quant_of(node).int8 or row.weight is not None or row.output not in (Output.OWN, Output.FIXED, Output.JOIN):
            return False
        if not _only_rounded(node, kept, context) or not context.allows("keep_float", node):
            return False
        context.matches += 1
        context.keep_float(self.name, node, USERS)
        return True

    def _follow(self, node: fx.Node, context: Context) -> None:
        """An op that was int8 because of an int8 input, and has none any more."""
        row = context.table.of(node)
        if row is None or not quant_of(node).int8 or row.weight is not None:
            return
        inputs = list(activations(context.table, node))
        first = inputs[:1] if row.output is Output.SAME else inputs
        if not any(quant_of(i).int8 for i in first):
            context.keep_float(self.name, node, FLOAT_INPUT if row.output is Output.SAME else FLOAT_INPUTS)


def _only_rounded(node: fx.Node, kept: set[fx.Node], context: Context) -> bool:
    """Whether some normalization (or an op that stays float for one), seen through copies, uses the value and no op that gains
    from int8 does.
    """
    left = [node]
    while left:  # a loop, for a chain of copies may be longer than Python nests calls
        rows = {user: context.table.of(user) for user in left.pop().users if quant_of(user).int8 or user in kept}
        further = [user for user, row in rows.items() if user not in kept and (row is None or not row.rounds_input)]
        if not rows or not all(_copies(rows[user]) for user in further):
            return False
        left += further
    return True


def _copies(row: Op | None) -> bool:
    return row is not None and row.output is Output.SAME
