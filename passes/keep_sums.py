"""An op that alone reads the result of an int8 op with a weight takes its sums, before anything is rounded, where a kernel computes both.

The result of a convolution in front of a PReLU reaches far below zero, where the PReLU leaves little: on 255 steps of that range the
positive values are coarse, and what is rounded again behind it does not get finer. The value between has no qparams and no observer.
After training it has, since training rounded it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.types import QUANT, Stage, quant_of
from qcompiler.ops.affine import base_of
from qcompiler.ops.arguments import activations, asks_size
from qcompiler.ops.spec import Output
from qcompiler.ops.stays_float import results_at


@dataclass(frozen=True)
class KeepSums:
    name: str = "keep_sums"
    stage: Stage = Stage.OBSERVED
    required: bool = False
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        changed = False
        quantized = () if context.trains else results_at(gm.graph, context.settings.custom.output_quantized_indexes)
        for node in () if context.trains else gm.graph.nodes:
            user = _only_reader(node, context)
            if user is None or node in quantized or not context.allows("kept_sums", node):
                continue
            context.journal.matches += 1
            node.meta[QUANT] = quant_of(node).with_(float_output=True)
            changed = True
        return changed


def _only_reader(node: fx.Node, context: Context) -> fx.Node | None:
    """The int8 op that the kernel of an int8 one computes too; None where there is no such kernel, or something else reads the result."""
    base, quant = base_of(node), quant_of(node)
    row, clamped = context.table.of(base), base is not node and node.kwargs.get("bounds") is not None
    if row is None or row.weight is None or not quant.int8 or quant.float_output or clamped:
        return None
    users = [user for user in node.users if not asks_size(user)]
    reader = context.table.of(users[0]) if len(users) == 1 else None
    if reader is None or reader.output not in (Output.OWN, Output.FIXED) or not quant_of(users[0]).int8:
        return None
    takes = list(activations(context.table, users[0])) == [node] and users[0].all_input_nodes.count(node) == 1
    return users[0] if takes and context.target.takes_sums(row, base, reader, users[0]) else None
