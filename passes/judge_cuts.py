"""What keeps a small part of a value's range finds few of the value's steps there: then the value is computed in float.

A clamp to [-1, 1.5] of a product that reaches 107 has four codes of 255, a ReLU of values that are nearly all negative a handful, and so
have LeakyReLU, GELU, minimum, threshold, and a difference of two large values that are nearly alike. Whatever an op makes of a rounded
value, its result has the value's steps. So each such result is measured by them: a range of n steps leaves it at best 20 log10(n) dB
(judge_parts says why).

Below LEAST steps the rounded value that the result is computed from stays float, seen through copies, sums, numbers and activations
(ops/noise_paths.py), and so does the value behind that one while its steps are as coarse. Other int8 ops take it rounded on its own
range as before, the result is rounded on its own. An op with weights stays float below LEAST_OF_WEIGHTS steps alone, 20 dB at best: to
make it float costs time. Where nothing can be done a remark says what is left.

A clamp was observed for itself (share_qparams). Where nothing of it is lost it takes the steps of its input, which costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.groups import join, members_of
from qcompiler.ir.types import Stage, quant_of
from qcompiler.ops.noise_paths import noise_sources, taken
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.spec import Family, Op, Output
from qcompiler.ops.stays_float import readers, results_at, spread

LEAST = 16  # steps, as of a part (judge_parts): 24 dB at best
LEAST_OF_WEIGHTS = 10  # 20 dB at best, as of rows (judge_rows)
NAME = "judge_cuts"


@dataclass(frozen=True)
class JudgeCuts:
    name: str = NAME
    stage: Stage = Stage.OBSERVED
    required: bool = True  # share_qparams kept clamps apart: here they get the qparams of their input
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        quantized = results_at(gm.graph, context.settings.custom.output_quantized_indexes)
        lost = [node for node in gm.graph.nodes if _judged(node, quantized, context)]
        for node, why in spread(gm.graph, context.table) if lost else ():
            context.keep_float(NAME, node, why)
        apart = [node for node in gm.graph.nodes if _is_apart(node, context)]
        members = members_of(gm.graph) if apart else {}
        for node in apart:
            join(members, node, node.args[0])  # type: ignore[arg-type]
        return bool(lost or apart)


def _is_apart(node: fx.Node, context: Context) -> bool:
    """Whether it is an int8 clamp that was observed for itself."""
    row, source = context.table.of(node), node.args[0] if node.args else None
    if row is None or row.clamp is None or not quant_of(node).int8 or not isinstance(source, fx.Node):
        return False
    return quant_of(source).group not in (None, quant_of(node).group)


def _judged(node: fx.Node, quantized: Sequence[fx.Node], context: Context) -> bool:
    """Makes float what leaves too little of the node's result; whether there was anything."""
    row, width = context.table.of(node), _width(node, context)
    if row is None or width is None:
        return False
    done = set[fx.Node]()
    while lost := _lost(node, width, done, context):
        for source, steps in lost.items():
            done.add(source)
            _settle(source, steps, node, quantized, context)
    return any(not quant_of(source).int8 for source in done)


def _width(node: fx.Node, context: Context) -> float | None:
    """How wide the range of a result that may be cut is, where that is known: from its qparams, or a clamp's own bounds."""
    row, qparams = context.table.of(node), quant_of(node).qparams
    if row is None or not _may_cut(row):
        return None
    if qparams is not None and isinstance(qparams.scale, float):
        low, high = qparams.range
        return high - low
    bounds = row.clamp(node.kwargs) if row.clamp is not None else (None, None)
    return float(bounds[1] - bounds[0]) if all(isinstance(bound, (int, float)) for bound in bounds) else None  # type: ignore[operator]


def _may_cut(row: Op) -> bool:
    """Clamps, arithmetic, and activations that are flat on a side. What has a fixed range, such as tanh, saturates on both."""
    if row.clamp is not None:
        return True
    return row.output is Output.OWN and row.family in (Family.ARITHMETIC, Family.ACTIVATION) and not row.float_inside


def _lost(node: fx.Node, width: float, done: set[fx.Node], context: Context) -> dict[fx.Node, float]:
    """The int8 values behind the node whose steps are too coarse for its result, each with how many of them that is."""
    found: dict[fx.Node, float] = {}
    for value, gain in taken(node, context.table):
        if isinstance(value, fx.Node):
            for source, more in noise_sources(value, context.table, lambda node: False).items():
                found[source] = found.get(source, 0.0) + gain * more
    known = {source: gain * _scale(source) for source, gain in found.items() if source not in done}
    return {source: width / step for source, step in known.items() if step > 0 and width / step < LEAST}


def _scale(source: fx.Node) -> float:
    """The step of a value; 0 where it has none of its own."""
    qparams = quant_of(source).qparams
    return qparams.scale if qparams is not None and isinstance(qparams.scale, float) else 0.0


def _settle(source: fx.Node, steps: float, node: fx.Node, quantized: Sequence[fx.Node], context: Context) -> None:
    """Makes a value float whose steps leave too little of a result; a remark where that is not done."""
    row, qparams = context.table.of(source), quant_of(source).qparams
    assert row is not None and qparams is not None
    left = f"at best {20 * math.log10(steps):.0f} dB" if steps > 1 else "nothing"
    total = qparams.quant_max - qparams.quant_min
    text = f"the range of %{node.name} is {steps:.2g} of its {total} steps, so {left} of that is left"
    wanted = any(value in quantized for value in (source, *readers(source, context.table).copies))
    if (row.weight is None or steps < LEAST_OF_WEIGHTS) and not wanted and context.allows("keep_float", source):
        context.journal.matches += 1
        context.keep_float(NAME, source, Obstacle("lost-cut", text))
    else:
        context.remark(NAME, "lost-cut", text, source)
