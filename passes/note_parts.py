"""In training a value that is read in parts has one fake quantizer: a remark names the op, so that parts of unlike range are no surprise.

After calibration each part has a scale of its own (scale_parts, judge_parts). There the ranges of the parts are known; in training they are
what the model learns to live with, and the weight's fake quantization would have to know the part of each channel.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.readers import Readers
from qcompiler.ir.types import Stage, quant_of
from qcompiler.ops.parts import parts_of

NAME = "note_parts"


@dataclass(frozen=True)
class NoteParts:
    name: str = NAME
    stage: Stage = Stage.OBSERVED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        with Readers(gm):
            found = [(node, parts_of(gm, node, context.table)) for node in gm.graph.nodes if quant_of(node).int8]
        for node, parts in found:
            if parts:
                text = f"its result is read in {len(parts)} parts, with one scale in training: of a much smaller part few steps are left"
                context.remark(NAME, "parts-share", text, node)
        return False
