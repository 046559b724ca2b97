"""A normalization brings all rows of a value to one size, and with them what 8 bits made of them: small rows must not be lost before it.

One step s for all rows leaves a row of mean square p (eps included, which the normalization adds) at best 10 log10(12 p / s**2) dB: its
power against s**2 / 12 of noise. A class token beside patches, words beside a padding token, the dark corner of an image: where calibration
saw a row of less than LEAST dB, the sum that the rows come from is computed from floats, and rounded for its int8 users alone.

What follows from that (ops that are int8 only behind int8 values) judge_parts makes float, once no observers stand between.

A value that nobody but such ops reads is float from the start (keep_float), and so is what an op with weights hands out of its own range:
this is about sums and the like that a convolution reads as well, as in coat_lite_tiny of timm (5 dB, with float sums 27).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.names import add_named
from qcompiler.ir.types import SOURCE, VALUE, Stage, quant_of, source_of
from qcompiler.ir.verify import where
from qcompiler.observers.rows import SmallestRow
from qcompiler.observers.watch import Watch, WatchKey
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.spec import Output
from qcompiler.ops.stays_float import results_at

LEAST = 24.0  # dB, as of a part that has 16 steps (judge_parts)


@dataclass(frozen=True)
class WatchRows:
    """Looks at the rows of each such int8 value."""

    name: str = "watch_rows"
    stage: Stage = Stage.OBSERVED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        found = [node for node in gm.graph.nodes if _is_judged(gm, node, context)]
        for node in found:
            x, row = node.args[0], context.table.of(node)
            assert isinstance(x, fx.Node) and row is not None and row.row_power is not None
            key = WatchKey(f"{node.name}_rows", (), SmallestRow)
            path = add_named(gm, "observers", key.name, Watch(SmallestRow(row.row_power, node.kwargs), where(node), key))
            with gm.graph.inserting_before(node):
                watch = gm.graph.create_node("call_module", path, (x,), name=f"{node.name}_rows_observer")
            watch.meta[VALUE], watch.meta[SOURCE] = x.meta.get(VALUE), source_of(x)
            node.args = (watch, *node.args[1:])
        return bool(found)


@dataclass(frozen=True)
class JudgeRows:
    """Takes the watches out again; values of which a row would be lost become float."""

    name: str = "judge_rows"
    stage: Stage = Stage.OBSERVED
    required: bool = True
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        watches = [(n, observer) for n in gm.graph.nodes if isinstance(observer := _observer(gm, n), SmallestRow)]
        scales = _scales(gm) if watches else {}
        indexes = context.settings.custom.output_quantized_indexes
        quantized = [_made_by(gm, value, context) for value in results_at(gm.graph, indexes)]
        for watch, observer in watches:
            (norm,), source = watch.users, _made_by(gm, watch, context)
            text = _lost(observer, scales.get(quant_of(source).group), norm)
            watch.replace_all_uses_with(watch.args[0])  # type: ignore[arg-type]
            gm.graph.erase_node(watch)
            delattr(gm.get_submodule("observers"), str(watch.target).removeprefix("observers."))
            if text and quant_of(source).int8 and source not in quantized and context.allows("keep_float", source):
                context.journal.matches += 1
                context.keep_float(self.name, source, Obstacle("lost-rows", text))
        return bool(watches)


def _is_judged(gm: fx.GraphModule, node: fx.Node, context: Context) -> bool:
    """Whether it normalizes rows of an int8 value of its own range that an op without weights computes."""
    row = context.table.of(node)
    if row is None or row.row_power is None or not isinstance(node.args[0], fx.Node):
        return False
    if any(isinstance(value, fx.Node) for value in fx.node.map_aggregate(tuple(node.kwargs.values()), lambda leaf: leaf)):
        return False
    source = _made_by(gm, node.args[0], context)
    made_by = context.table.of(source)
    computes = made_by is not None and made_by.weight is None and made_by.output in (Output.OWN, Output.JOIN)
    return computes and quant_of(source).int8 and quant_of(source).group is not None


def _made_by(gm: fx.GraphModule, value: fx.Node, context: Context) -> fx.Node:
    """What a value is a copy of, seen through observers."""
    while value.args and isinstance(value.args[0], fx.Node):
        row = context.table.of(value)
        if _observer(gm, value) is None and (row is None or row.output is not Output.SAME or not quant_of(value).int8):
            break
        value = value.args[0]
    return value


def _observer(gm: fx.GraphModule, node: fx.Node) -> Any:
    """The observer that a node calls, None where it calls none."""
    module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module.observer if isinstance(module, Watch) else None


def _scales(gm: fx.GraphModule) -> dict[int | None, float]:
    """The scale that calibration gives each group, where that is one number."""
    found: dict[int | None, float] = {}
    for node in gm.graph.nodes:
        observer = _observer(gm, node)
        if observer is not None and not isinstance(observer, SmallestRow) and observer.observed:
            source, scale = node.args[0], observer.qparams().scale
            if isinstance(source, fx.Node) and isinstance(scale, float):
                found[quant_of(source).group] = scale
    return found


def _lost(observer: SmallestRow, scale: float | None, norm: fx.Node) -> str | None:
    """What the scale of all rows leaves of the smallest one, where that is too little."""
    if scale is None or not observer.observed:
        return None
    left = 10 * math.log10(12 * float(observer.least) / scale**2)
    if left >= LEAST:
        return None
    return f"%{norm.name} brings its rows to one size, and the step that all rows share leaves {left:.0f} dB of the smallest"
