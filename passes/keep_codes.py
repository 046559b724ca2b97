"""x * f + t of an int8 value that nothing else reads keeps the value's codes: its scale is f times the value's, its zero is t away.

The other way round: what calibration found of the result gives the qparams of the value that it is made of. So a chain of affine ops
behind an activation, as in PP-LCNet, rounds once. The offset must be a whole number of steps, for which they are made a little larger:
where that would cost more than rounding once more does, the op rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.groups import members_of
from qcompiler.ir.types import QUANT, QParams, Stage, quant_of, value_of
from qcompiler.ops.affine import affine_of
from qcompiler.ops.arguments import asks_size
from qcompiler.ops.spec import Output
from qcompiler.ops.stays_float import is_int8, results_at
from qcompiler.ops.table import Table

NAME = "keep_codes"
NEAR = 0.02  # of a step: an offset so close to whole steps counts as such
COARSER = math.sqrt(1.5)  # steps so much larger have half as much noise again, where a second rounding has twice as much


@dataclass(frozen=True)
class KeepCodes:
    name: str = NAME
    stage: Stage = Stage.OBSERVED
    required: bool = False
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        members, changed = members_of(gm.graph), False
        quantized = results_at(gm.graph, context.settings.custom.output_quantized_indexes)
        for node in reversed(gm.graph.nodes):
            source = _source(node, members, context.table)
            if source is None or source in quantized or node in quantized:
                continue
            found = _qparams(node, source, context.table)
            if found is None:
                continue
            if not context.allows(NAME, node):
                context.remark(NAME, "held-back", "it could keep the codes of its input, but that was held back", node)
                continue
            context.journal.matches += 1
            for value, qparams in zip((source, node), found, strict=True):
                for member in members[quant_of(value).group]:  # type: ignore[index]
                    member.meta[QUANT] = quant_of(member).with_(qparams=qparams)
            changed = True
        return changed


def _source(node: fx.Node, members: dict[int, list[fx.Node]], table: Table) -> fx.Node | None:
    """The int8 value that the node alone reads, where both have steps of their own, and the node may be affine."""
    values = [arg for arg in node.args[:2] if isinstance(arg, fx.Node)]
    if node.op != "call_function" or len(values) != 1 or not is_int8(node) or not is_int8(values[0]):
        return None
    row, source = table.of(values[0]), values[0]
    readers = [user for user in source.users if not asks_size(user)]
    if row is None or row.output is not Output.OWN or readers != [node] or _others(source, source, members, table):
        return None
    return source if not _others(node, node, members, table) else None


def _others(node: fx.Node, first: fx.Node, members: dict[int, list[fx.Node]], table: Table) -> Sequence[fx.Node]:
    """What shares the steps of a value and is no copy of it."""
    group = quant_of(node).group
    rows = {member: table.of(member) for member in members.get(group, [])} if group is not None else {}
    return [member for member, row in rows.items() if member is not first and (row is None or row.output is not Output.SAME)]


def _qparams(node: fx.Node, source: fx.Node, table: Table) -> tuple[QParams, QParams] | None:
    """Those of the value and of the result; None where codes cannot stay what they are."""
    own, shape = quant_of(node).qparams, value_of(source).shape
    affine = affine_of(node, source, max(len(shape or ()) - 1, 0), table)
    if own is None or not isinstance(own.scale, float) or not isinstance(own.zero_point, int) or affine is None or not affine.is_one_number:
        return None
    factor, offset = float(affine.factor), float(affine.offset)
    if not 0 < factor < math.inf or not math.isfinite(offset):
        return None
    steps = offset / own.scale
    whole = round(steps) if abs(steps - round(steps)) <= NEAR else math.trunc(steps)
    scale = own.scale if abs(steps - whole) <= NEAR else abs(offset / whole) if whole else math.inf
    made = replace(own, scale=scale, zero_point=_zero_point(own, scale))
    before = replace(made, scale=scale / factor, zero_point=made.zero_point + whole)  # type: ignore[operator]
    made = replace(made, scale=scale / factor * factor)  # what kernels compare
    fits = own.quant_min <= int(before.zero_point) <= own.quant_max  # type: ignore[arg-type]
    return (before, made) if scale <= COARSER * own.scale and fits else None


def _zero_point(own: QParams, scale: float) -> int:
    """Where zero stands if the same range has other steps."""
    return min(max(own.quant_min - round(own.range[0] / scale), own.quant_min), own.quant_max) if math.isfinite(scale) else own.quant_min
