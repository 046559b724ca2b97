"""Ops that feed only normalizations, softmax or matmul, or ops that stay float for that reason, stay float: the residual stream
and the attention of a transformer, with the masks that are added to its scores. So do those that feed only roots and logarithms.

Those compute in float whatever their input is, so an int8 value before them saves nothing. And it costs: a residual stream has
few values far larger than the rest, which leave 8 bits nothing for the others (ViT-B/16: 6 dB with int8 sums, 27 dB without); a
class token is small beside the patches that it is joined with (deit3_small: 13 dB with an int8 cat, 30 dB without); a softmax over
1,500 tokens has no value above the half step of 1/512.

A root, a logarithm or a reciprocal makes small values large: of a square in int8, whose step is that of the largest, it finds
nothing below. The magnitude of a spectrum (sqrt(re ** 2 + im ** 2)) had 9.9 dB in int8, in front of a trained speech detector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from qcompiler.ir.types import Stage, quant_of
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.spec import Op, Output
from qcompiler.ops.stays_float import spread
from qcompiler.pass_manager import Context

USERS = Obstacle("float-users", "only ops that compute in float, such as normalizations, use its result")
STEEP = Obstacle("steep-users", "only ops that make small values large, such as sqrt and log, use its result")


@dataclass(frozen=True)
class KeepResidualsFloat:
    name: str = "keep_residuals_float"
    stage: Stage = Stage.OBSERVED
    required: bool = False
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        kept: dict[fx.Node, Obstacle] = {}
        for node in reversed(gm.graph.nodes):
            why = self._reason(node, kept, context)
            if why is not None and context.allows("keep_float", node):
                context.matches += 1
                context.keep_float(self.name, node, why)
                kept[node] = why
        for node, why in spread(gm.graph, context.table) if kept else ():
            context.keep_float(self.name, node, why)
        return bool(kept)

    def _reason(self, node: fx.Node, kept: Mapping[fx.Node, Obstacle], context: Context) -> Obstacle | None:
        row = context.table.of(node)
        if row is None or not quant_of(node).int8 or row.weight is not None or row.output not in (Output.OWN, Output.FIXED, Output.JOIN):
            return None
        return _float_users(node, kept, context)


def _float_users(node: fx.Node, kept: Mapping[fx.Node, Obstacle], context: Context) -> Obstacle | None:
    """Why a value stays float: some normalization or root (or an op that stays float for one), seen through copies, uses it and no op
    that gains from int8 does.
    """
    left, found = [node], USERS
    while left:  # a loop, for a chain of copies may be longer than Python nests calls
        value = left.pop()
        users = [user for user in value.users if quant_of(user).int8 or user in kept]
        reasons = {user: kept.get(user) or _takes_float(user, value, context.table.of(user)) for user in users}
        further = [user for user, why in reasons.items() if why is None]
        if not users or not all(_copies(context.table.of(user)) for user in further):
            return None
        found = STEEP if STEEP in reasons.values() else found
        left += further
    return found


def _takes_float(user: fx.Node, value: fx.Node, row: Op | None) -> Obstacle | None:
    """Why an op is better off with a float value."""
    if row is None:
        return None
    steep = any(row.spreads(user.kwargs, i) for i, argument in enumerate(user.args) if argument is value)
    return USERS if row.rounds_input else STEEP if steep else None


def _copies(row: Op | None) -> bool:
    return row is not None and row.output is Output.SAME
