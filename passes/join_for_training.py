"""A cat and the inputs that it alone uses become one group of qparams before training: such a cat is a copy.

After training the ranges are what the model learned to live with, so the choice is made before (join_qparams makes it after
calibration). An input that nothing else uses would be rounded twice, by its own fake quantization and by the cat's; fake
quantization behind the cat alone rounds its copies once, to the same steps, as the int8 kernels will. An input with another
user, or of an op that copies or averages, keeps its own: the cat requantizes it, in training as in int8.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.groups import members_of
from qcompiler.ir.types import QUANT, Stage, quant_of
from qcompiler.ops.arguments import activations
from qcompiler.ops.spec import Output


@dataclass(frozen=True)
class JoinForTraining:
    name: str = "join_for_training"
    stage: Stage = Stage.OBSERVED
    required: bool = False
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        members, changed = members_of(gm.graph), False
        for node in gm.graph.nodes:
            row, group = context.table.of(node), quant_of(node).group
            if row is None or row.output is not Output.JOIN or not quant_of(node).int8 or group is None:
                continue
            for value in dict.fromkeys(activations(context.table, node)):
                if not _only_copied(value, node, members, context):
                    context.remark(self.name, "not-joined", f"%{value.name} keeps its own qparams: the op requantizes it", node)
                elif context.allows("join", node):
                    changed |= _move(members, quant_of(value).group, group)
                    context.journal.matches += 1
        return changed


def _only_copied(value: fx.Node, cat: fx.Node, members: dict[int, list[fx.Node]], context: Context) -> bool:
    """Whether the value goes nowhere but into the cat, and was computed by the op itself and not by a copy of others."""
    group = quant_of(value).group
    if group is None or set(value.users) != {cat} or value.op == "placeholder" or not quant_of(value).int8:
        return False
    rows = [context.table.of(node) for node in members[group]]
    return all(row is not None and row.output in (Output.OWN, Output.JOIN) for row in rows)


def _move(members: dict[int, list[fx.Node]], old: int | None, new: int) -> bool:
    if old is None or old == new:
        return False
    for node in members[old]:
        node.meta[QUANT] = quant_of(node).with_(group=new)
    members[new] += members.pop(old)
    return True
