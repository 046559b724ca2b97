"""Channels that data picks out of an int8 value share one step: a remark where those of its op are of very unlike size.

What is cut by slices, chunks or numbers has a step for each part (scale_parts). What `gather`, `take_along_dim` or a mask takes is known at
the call alone, and einsum may take anything; the rows of the weight tell whether that matters. The ranges of channels are not observed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.attributes import attribute
from qcompiler.ir.types import Stage, quant_of
from qcompiler.ops.spec import Family, Op, Output

PICKING = frozenset({"gather", "take_along_dim", "masked_select", "index_select", "take", "einsum"})
UNLIKE = 50.0  # between the largest row and the smallest: five of 255 steps are left of that
_FAMILIES = (Family.LINEAR, Family.CONVOLUTION)


@dataclass(frozen=True)
class NotePicked:
    name: str = "note_picked"
    stage: Stage = Stage.OBSERVED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        for node in gm.graph.nodes:
            row, quant = context.table.of(node), quant_of(node)
            if row is None or row.family not in _FAMILIES or not quant.int8 or quant.float_output:
                continue
            picking = next(_picking(node, context), None)
            if picking is not None and (ratio := _ratio(gm, node, row)) > UNLIKE:
                text = f"%{picking.name} picks from its channels, which share one step: their weights differ by a factor of {ratio:.0f}, so"
                context.remark(self.name, "picked-rows", f"{text} few steps are left of the small ones", node)
        return False


def _picking(node: fx.Node, context: Context) -> Iterator[fx.Node]:
    """What picks elements from a value or from a copy of it."""
    for user in node.users:
        row = context.table.of(user)
        name = row.name if row is not None else getattr(user.target, "__name__", str(user.target))
        if name in PICKING:
            yield user
        elif user.op == "call_module" or (row is not None and row.output is Output.SAME and row.family is Family.COPY):
            yield from _picking(user, context)


def _ratio(gm: fx.GraphModule, node: fx.Node, row: Op) -> float:
    """Between the largest and the smallest row of a weight, rows of zeros left out."""
    weight = node.args[row.weight or 0]
    held = attribute(gm, str(weight.target)) if isinstance(weight, fx.Node) and weight.op == "get_attr" else None
    if not isinstance(held, Tensor) or held.dim() < 2:
        return 1.0
    sizes = held.detach().flatten(1).norm(dim=1)
    sizes = sizes[sizes > 0]
    return float(sizes.max() / sizes.min()) if sizes.numel() else 1.0
