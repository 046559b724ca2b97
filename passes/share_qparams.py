"""Numbers the groups of values that share qparams: an op whose output is "same as input" joins its first activation's group.

But for the parts in which alone the result of an op is read (scale_parts, judge_parts), means of many values (judge_averages), and clamps
(judge_cuts): each is observed for itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.readers import Readers
from qcompiler.ir.types import QUANT, Stage, quant_of
from qcompiler.ir.view import groups
from qcompiler.ops.arguments import activations
from qcompiler.ops.averages import averages_many
from qcompiler.ops.parts import parts_of
from qcompiler.ops.spec import Output
from qcompiler.ops.stays_float import reads_sums


@dataclass(frozen=True)
class ShareQParams:
    name: str = "share_qparams"
    stage: Stage = Stage.OBSERVED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        table = context.table
        cuts = _cuts(gm, context)

        def same(source: fx.Node, user: fx.Node) -> bool:
            row = table.of(user)
            return row is not None and row.output is Output.SAME and quant_of(user).int8 and user.args[0] is source and user not in cuts

        wanted = {a for n in gm.graph.nodes if quant_of(n).int8 and not reads_sums(n, table) for a in activations(table, n)}
        number = 0
        for part in groups(gm.graph, same):
            if any((quant_of(n).int8 and not quant_of(n).float_output) or n in wanted for n in part):
                for node in part:
                    node.meta[QUANT] = quant_of(node).with_(group=number)
                number += 1
        return number > 0


def _cuts(gm: fx.GraphModule, context: Context) -> dict[fx.Node, None]:
    """The first nodes of each part, means and clamps. A model that is trained learns its ranges with one scale."""
    if context.trains:
        return {}
    with Readers(gm):
        found = [parts_of(gm, node, context.table) for node in gm.graph.nodes if quant_of(node).int8]
    means = [node for node in gm.graph.nodes if averages_many(node, context.table)]
    clamps = [node for node in gm.graph.nodes if (row := context.table.of(node)) is not None and row.clamp is not None]
    return dict.fromkeys([node for parts in found for part in parts for node in part.nodes] + means + clamps)
