"""Fake quantization of what is no activation of its own: weights, and averages of values that share their input's qparams.

`conv(x, w)` becomes `conv(x, weight_fake_quants.conv(w))`; an op with batch norm gets the module as its `fake_quant`, to call
with the folded weight. What only int8 decides is decided here and simulated: one scale or one for each channel, and scales
that are large enough for the kernel's partial sums.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from qcompiler.compile.pass_manager import Context
from qcompiler.config.qconfig_of_op import channel_axis
from qcompiler.fake_quantize import FakeQuantize, default_embedding_fake_quant
from qcompiler.ir.attributes import attribute, get_attr
from qcompiler.ir.names import add_named
from qcompiler.ir.types import SOURCE, VALUE, Mode, Stage, quant_of, source_of, value_of
from qcompiler.ir.verify import where
from qcompiler.observers.watch import Watch
from qcompiler.ops.spec import Family, Op
from qcompiler.qat.sites import HOLDER, made_by, round_like
from qcompiler.qat.weights import weight_fake_quant
from qcompiler.target import WeightLimit


@dataclass(frozen=True)
class InsertFakeQuants:
    name: str = "insert_fake_quants"
    stage: Stage = Stage.OBSERVED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        gm.add_module(HOLDER, nn.Module())
        weights = _Weights(gm, context)
        for node in list(gm.graph.nodes):
            row = context.table.of(node)
            mode = quant_of(node).mode
            folds = mode is Mode.WEIGHT_ONLY and row is not None and row.eval_form is not None  # what is stored is the folded weight
            if row is not None and row.weight is not None and (quant_of(node).int8 or folds):
                weights.insert(node, row, row.weight)
            elif row is not None and mode is Mode.WEIGHT_ONLY:
                for weight in row.weights(node):
                    weights.insert_alone(node, row, weight)
            elif mode is not None:
                text = f"training does not see the rounding of {mode.value}: it happens at convert"
                context.remark(self.name, "not-simulated", text, node)
        _round_averages(gm, context)
        return True


class _Weights:
    """One module for each weight; calls of one shared module share it, but for weights that a batch norm scales."""

    def __init__(self, gm: fx.GraphModule, context: Context) -> None:
        self.gm, self.context = gm, context
        self.done: dict[tuple[str, int | None, WeightLimit | None], fx.Node] = {}

    def insert(self, node: fx.Node, row: Op, position: int) -> None:
        weight: Any = node.args[position]
        axis, limit = channel_axis(row, quant_of(node).qconfig), self.context.target.weight_limit(row, node)
        if row.eval_form is not None:
            node.kwargs = {**node.kwargs, "fake_quant": self._attribute(node, self._module(node, weight, axis, limit))}
            return
        key = (str(weight.target), axis, limit)
        if key not in self.done:
            self.done[key] = self._call(node, weight, self._module(node, weight, axis, limit))
        node.args = (*node.args[:position], self.done[key], *node.args[position + 1 :])

    def insert_alone(self, node: fx.Node, row: Op, weight: fx.Node) -> None:
        """For an op that takes and gives floats: the weight as convert will store it, one scale a channel (or row of a table)."""
        key = (str(weight.target), row.weight_axis, None)
        if key not in self.done:
            qconfig = quant_of(node).qconfig
            made = made_by(qconfig.weight, "weight", where(node))
            fits = made.is_per_channel or row.family is not Family.EMBEDDING
            qconfig = qconfig if fits else replace(qconfig, weight=default_embedding_fake_quant)
            axis = row.weight_axis if not fits or made.is_per_channel else None
            module = weight_fake_quant(qconfig, attribute(self.gm, str(weight.target)), axis)
            self.done[key] = self._call(node, weight, add_named(self.gm, HOLDER, node.name, module))
        node.replace_input_with(weight, self.done[key])

    def _attribute(self, node: fx.Node, path: str) -> fx.Node:
        with self.gm.graph.inserting_before(node):
            return get_attr(self.gm, path, source_of(node))

    def _call(self, node: fx.Node, weight: fx.Node, path: str) -> fx.Node:
        with self.gm.graph.inserting_after(weight):
            made = self.gm.graph.create_node("call_module", path, (weight,), name=f"{node.name}_weight_fake_quant")
        made.meta[VALUE], made.meta[SOURCE] = value_of(weight), source_of(node)
        return made

    def _module(self, node: fx.Node, weight: fx.Node, axis: int | None, limit: WeightLimit | None) -> str:
        """The path of a new fake-quantize module for the node's weight."""
        qconfig = quant_of(node).qconfig
        made = weight_fake_quant(qconfig, attribute(self.gm, str(weight.target)), axis)
        if limit is not None and isinstance(made, FakeQuantize):
            made.least_scale = limit.least_scale
        return add_named(self.gm, HOLDER, node.name, made)


def _round_averages(gm: fx.GraphModule, context: Context) -> None:
    """Behind each op that averages on its input's scale: the int8 kernel rounds there."""
    watches = {quant_of(n.args[0]).group: n for n in gm.graph.nodes if n.op == "call_module" and str(n.target).startswith("observers.")}
    for node in list(gm.graph.nodes):
        row, watch = context.table.of(node), watches.get(quant_of(node).group)
        if row is None or watch is None or not quant_of(node).int8 or not row.averages(node.kwargs):
            continue
        assert isinstance(gm.get_submodule(str(watch.target)), Watch)
        with gm.graph.inserting_after(node):
            held = get_attr(gm, str(watch.target), source_of(node))
        with gm.graph.inserting_after(held):
            made = gm.graph.create_node("call_function", round_like, (node, held), name=f"{node.name}_rounded")
        made.meta[VALUE], made.meta[SOURCE] = node.meta.get(VALUE), source_of(node)
        node.replace_all_uses_with(made, delete_user_cb=lambda user, made=made: user is not made)
