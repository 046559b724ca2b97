"""An int8 op whose result no int8 op uses gives floats straight from its 32-bit sums, where the back end has such a kernel.

Quantizing the logits of a classifier costs about 1 dB of a 35 dB network and makes ties of its largest values. Ops that only
copy such a result (flatten, squeeze) copy floats.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from qcompiler.ir.types import QUANT, Stage, quant_of
from qcompiler.ops.arguments import activations
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.spec import Output
from qcompiler.pass_manager import Context


@dataclass(frozen=True)
class HandOutFloats:
    name: str = "hand_out_floats"
    stage: Stage = Stage.OBSERVED
    required: bool = False
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        changed = False
        for node in gm.graph.nodes:
            row = context.table.of(node)
            if row is None or not quant_of(node).int8 or not context.target.gives_floats(row, node):
                continue
            copies = _copies(node, context)
            if copies is not None and context.allows("float_result", node):
                context.matches += 1
                node.meta[QUANT] = quant_of(node).with_(float_output=True)
                for copy in copies:
                    context.keep_float(self.name, copy, Obstacle("float-result", "it copies a float result"))
                changed = True
        return changed


def _copies(node: fx.Node, context: Context) -> list[fx.Node] | None:
    """The int8 ops that only copy the node's result on its way to float users; None where an int8 op computes with it."""
    found: dict[fx.Node, None] = {}
    left = [node]
    while left:  # a loop, for a chain of copies may be longer than Python nests calls
        value = left.pop()
        for user in value.users:
            if user.op == "output" and context.custom is not None and context.custom.output_quantized_indexes:
                return None  # the caller wants it quantized
            if user in found or not quant_of(user).int8 or value not in set(activations(context.table, user)):
                continue
            row = context.table.of(user)
            if row is None or row.output is not Output.SAME:
                return None
            found[user] = None
            left.append(user)
    return list(found)
