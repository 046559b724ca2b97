"""A normalization brings all rows of a value to one size, and with them what 8 bits made of them: small rows must not be lost before it.

One step s for all rows leaves a row of mean square p (eps included, which the normalization adds) at best 10 log10(12 p / s**2) dB: its
power against s**2 / 12 of noise. A class token beside patches, words beside a padding token, the dark corner of an image: where calibration
saw a row of less than LEAST dB, the sum that the rows come from is computed from floats, and rounded for its int8 users alone.

What follows from that (ops that are int8 only behind int8 values) judge_parts makes float, once no observers stand between.

A value that nobody but such ops reads is float from the start (keep_float): this is about sums and the like that a convolution reads as
well, as in coat_lite_tiny of timm (5 dB, with float sums 27).

An op with weights is rounded on its own scale even so, wherever its kernel hands out integers, and sums, products with numbers and
activations that are float pass that noise on (ops/noise_paths.py). There the noise of all rows counts, the mean of s**2 / (12 p), at most
1 of each: to make a convolution float costs time. Below LEAST_OF_ALL dB it is worth that: channels of unlike size in front of an
InstanceNorm had 0 to 12 dB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.names import add_named
from qcompiler.ir.types import SOURCE, VALUE, Stage, quant_of, source_of
from qcompiler.ir.verify import where
from qcompiler.observers.rows import SmallestRow
from qcompiler.observers.watch import Watch, WatchKey
from qcompiler.ops.noise_paths import noise_sources
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.spec import Output
from qcompiler.ops.stays_float import results_at

LEAST = 24.0  # dB, as of a part that has 16 steps (judge_parts)
LEAST_OF_ALL = 20.0  # dB, of all rows together: what is below it is of no use, whatever it saves


@dataclass(frozen=True)
class WatchRows:
    """Looks at the rows that a normalization finds, where int8 values lie behind them."""

    name: str = "watch_rows"
    stage: Stage = Stage.OBSERVED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        found = [node for node in gm.graph.nodes if _is_judged(node, context) and any(_sources(gm, node.args[0], context))]
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
            (norm,), (whole, behind) = watch.users, _sources(gm, watch, context)
            lost = {source: _lost_of_all(observer, gain * _scale(scales, source), norm) for source, gain in behind.items()}
            if whole is not None:
                lost[whole] = _lost(observer, _scale(scales, whole), norm)
            watch.replace_all_uses_with(watch.args[0])  # type: ignore[arg-type]
            gm.graph.erase_node(watch)
            delattr(gm.get_submodule("observers"), str(watch.target).removeprefix("observers."))
            for source, text in lost.items():
                if text and quant_of(source).int8 and source not in quantized and context.allows("keep_float", source):
                    context.journal.matches += 1
                    context.keep_float(self.name, source, Obstacle("lost-rows", text))
        return bool(watches)


def _is_judged(node: fx.Node, context: Context) -> bool:
    """Whether it normalizes the rows of a value, with settings that are known."""
    row = context.table.of(node)
    if row is None or row.row_power is None or not isinstance(node.args[0], fx.Node):
        return False
    return not any(isinstance(value, fx.Node) for value in fx.node.map_aggregate(tuple(node.kwargs.values()), lambda leaf: leaf))


def _sources(gm: fx.GraphModule, value: fx.Node, context: Context) -> tuple[fx.Node | None, dict[fx.Node, float]]:
    """The int8 op without weights that the value is a copy of, if it is; the other int8 values whose noise it has, with their gains."""
    source = _made_by(gm, value, context)
    made_by = context.table.of(source)
    if made_by is not None and made_by.weight is None and made_by.output in (Output.OWN, Output.JOIN) and _has_scale(source):
        return source, {}
    found = noise_sources(value, context.table, lambda node: _watch(gm, node) is not None)
    return None, {source: gain for source, gain in found.items() if _has_scale(source)}


def _has_scale(source: fx.Node) -> bool:
    return quant_of(source).int8 and quant_of(source).group is not None


def _made_by(gm: fx.GraphModule, value: fx.Node, context: Context) -> fx.Node:
    """What a value is a copy of, seen through observers."""
    while value.args and isinstance(value.args[0], fx.Node):
        row = context.table.of(value)
        if _observer(gm, value) is None and (row is None or row.output is not Output.SAME or not quant_of(value).int8):
            break
        value = value.args[0]
    return value


def _watch(gm: fx.GraphModule, node: fx.Node) -> Watch | None:
    module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, Watch) else None


def _observer(gm: fx.GraphModule, node: fx.Node) -> Any:
    """The observer that a node calls, None where it calls none."""
    watch = _watch(gm, node)
    return None if watch is None else watch.observer


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


def _scale(scales: Mapping[int | None, float], source: fx.Node) -> float:
    """NaN where calibration gave none: nothing is less than that."""
    return scales.get(quant_of(source).group, math.nan)


def _lost(observer: SmallestRow, scale: float, norm: fx.Node) -> str | None:
    """What the scale of all rows leaves of the smallest one, where that is too little."""
    left = 10 * math.log10(12 * float(observer.least) / scale**2) if observer.observed else math.inf
    return f"{_SHARED.format(norm.name)} leaves {left:.0f} dB of the smallest" if left < LEAST else None


def _lost_of_all(observer: SmallestRow, scale: float, norm: fx.Node) -> str | None:
    """The same of all rows."""
    noise = observer.noise(scale**2 / 12) if observer.observed else 0.0
    left = -10 * math.log10(noise) if noise > 0 else math.inf
    return f"{_SHARED.format(norm.name)} leaves {left:.0f} dB of them" if left < LEAST_OF_ALL else None


_SHARED = "%{} brings its rows to one size, and the step that all rows share"
