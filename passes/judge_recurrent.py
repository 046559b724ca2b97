"""Recurrent layers under a static qconfig: int8 dynamic, unless calibration shows that their input would be lost.

torch's kernels round the input of a layer to 255 steps of its whole range. Of values that span many decades, such as the power of a
spectrum that no logarithm was taken of, little is left: a trained speaker encoder had 4.1 dB, 79 % of its input values rounded to zero.
The user asked for what calibration data says is good, not for dynamic quantization, so such a layer stays float.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.config.qconfig import mode_of
from qcompiler.ir.names import add_named
from qcompiler.ir.types import SOURCE, VALUE, Mode, Stage, quant_of, source_of
from qcompiler.ir.verify import where
from qcompiler.observers.vanishing import Vanishing
from qcompiler.observers.watch import Watch, WatchKey
from qcompiler.ops.obstacles import Obstacle

MOST = 0.5  # of the nonzero values; of normally distributed ones 1 or 2 % are lost


@dataclass(frozen=True)
class WatchRecurrent:
    """Counts what 8 bits would lose of each such layer's float input."""

    name: str = "watch_recurrent"
    stage: Stage = Stage.OBSERVED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        found = [node for node in gm.graph.nodes if _is_judged(node, context)]
        for node in found:
            x = node.args[0]
            assert isinstance(x, fx.Node)
            spare = quant_of(x).int8  # 8 bits hold it already, unless convert_fx(keep_float=...) makes it float
            key = WatchKey(f"{node.name}_input", (), Vanishing)
            path = add_named(gm, "observers", key.name, Watch(Vanishing(), where(node), key, spare))
            with gm.graph.inserting_before(node):
                watch = gm.graph.create_node("call_module", path, (x,), name=f"{node.name}_input_observer")
            watch.meta[VALUE], watch.meta[SOURCE] = x.meta.get(VALUE), source_of(x)
            if not spare:
                node.args = (watch, *node.args[1:])
        return bool(found)


@dataclass(frozen=True)
class JudgeRecurrent:
    """Takes the counters out again; layers whose input would be lost become float."""

    name: str = "judge_recurrent"
    stage: Stage = Stage.OBSERVED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        calls = ((node, _counter(gm, node)) for node in gm.graph.nodes if node.op == "call_module")
        watches = [(node, counter.share) for node, counter in calls if counter is not None]
        for watch, share in watches:
            text = f"int8 dynamic would round {share:.0%} of its input's nonzero values to zero (a dynamic qconfig does it all the same)"
            for node in watch.users if share > MOST else ():
                if context.allows("keep_float", node):
                    context.keep_float(self.name, node, Obstacle("input-vanishes", text))
            watch.replace_all_uses_with(watch.args[0])  # type: ignore[arg-type]
            gm.graph.erase_node(watch)
            delattr(gm.get_submodule("observers"), str(watch.target).removeprefix("observers."))
        return bool(watches)


def _is_judged(node: fx.Node, context: Context) -> bool:
    row, quant = context.table.of(node), quant_of(node)
    if row is None or not row.rounds_inside or quant.mode is not Mode.DYNAMIC or mode_of(quant.qconfig) is not None:
        return False
    return isinstance(node.args[0], fx.Node)


def _counter(gm: fx.GraphModule, node: fx.Node) -> Vanishing | None:
    module = gm.get_submodule(str(node.target))
    return module.observer if isinstance(module, Watch) and isinstance(module.observer, Vanishing) else None
