"""An int8 op whose result no int8 op uses gives floats straight from its 32-bit sums, where the back end has such a kernel.

Quantizing the logits of a classifier costs about 1 dB of a 35 dB network and makes ties of its largest values. Ops that only
copy such a result (flatten, squeeze) copy floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.types import QUANT, Stage, quant_of
from qcompiler.ops.stays_float import Readers, readers, results_at, spread


@dataclass(frozen=True)
class HandOutFloats:
    name: str = "hand_out_floats"
    stage: Stage = Stage.OBSERVED
    required: bool = False
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        changed = False
        quantized = results_at(gm.graph, context.settings.custom.output_quantized_indexes)
        for node in gm.graph.nodes:
            row = context.table.of(node)
            if row is None or not quant_of(node).int8 or not context.target.gives_floats(row, node):
                continue
            if _takes_floats(readers(node, context.table), node, quantized) and context.allows("float_result", node):
                context.journal.matches += 1
                node.meta[QUANT] = quant_of(node).with_(float_output=True)
                changed = True
        for copy, why in spread(gm.graph, context.table) if changed else ():
            context.keep_float(self.name, copy, why)
        return changed


def _takes_floats(found: Readers, node: fx.Node, quantized: Sequence[fx.Node]) -> bool:
    """Whether no int8 op computes with the value, and the caller does not want it quantized."""
    return not found.int8 and not any(value in quantized for value in (node, *found.copies))
