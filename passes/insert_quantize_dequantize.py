"""Makes quantization explicit: quantize and dequantize behind each value with qparams, int8 weights behind dequantize_weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompiler.errors import NumericsError
from qcompiler.ir.attributes import attribute, get_attr, set_attribute
from qcompiler.ir.types import QUANT, SOURCE, VALUE, QParams, Quant, Stage, Value, quant_of, source_of, value_of
from qcompiler.ir.verify import where
from qcompiler.observers.ranges import empty_channels, floored
from qcompiler.ops.arguments import activations, replace_activations
from qcompiler.ops.reference import dequantize, dequantize_weight, quantize, quantize_weight
from qcompiler.pass_manager import Context


@dataclass(frozen=True)
class InsertQuantizeDequantize:
    name: str = "insert_quantize_dequantize"
    stage: Stage = Stage.QUANTIZED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        weights = _Weights(gm, context)
        for node in list(gm.graph.nodes):
            if quant_of(node).int8 and (row := context.table.of(node)) is not None and row.weight is not None:
                weights.quantize(node, row.weight)
        for node in list(gm.graph.nodes):
            qparams = quant_of(node).qparams
            if qparams is not None and value_of(node).shape is not None:
                _wrap(gm, node, qparams, context)
        gm.graph.eliminate_dead_code()
        return True


def _call(gm: fx.GraphModule, like: fx.Node, target: Callable[..., Any], args: tuple[Any, ...], name: str, dtype: torch.dtype) -> fx.Node:
    node = gm.graph.create_node("call_function", target, args, name=name)
    node.meta[VALUE], node.meta[SOURCE] = Value(value_of(like).shape, dtype), source_of(like)
    return node


def _wrap(gm: fx.GraphModule, node: fx.Node, p: QParams, context: Context) -> None:
    """x -> dequantize(quantize(x)) for every user of an int8 value, for the int8 users of a float one."""
    owned = quant_of(node).int8
    users = [u for u in node.users if owned or (quant_of(u).int8 and node in set(activations(context.table, u)))]
    if not users:
        return
    with gm.graph.inserting_after(node):
        q = _call(gm, node, quantize, (node, p.scale, p.zero_point, p.quant_min, p.quant_max, p.dtype), f"{node.name}_q", p.dtype)
    q.meta[QUANT] = Quant(int8=False, qparams=p)
    with gm.graph.inserting_after(q):
        d = _call(gm, node, dequantize, (q, p.scale, p.zero_point), f"{node.name}_dq", torch.float32)
    for user in users:
        if owned:
            user.replace_input_with(node, d)
        else:
            replace_activations(context.table, user, node, d)


class _Weights:
    """int8 weights under their own names; a weight that several ops share is quantized once."""

    def __init__(self, gm: fx.GraphModule, context: Context) -> None:
        self.gm, self.context = gm, context
        self.done: dict[tuple[str, int | None, bool], fx.Node] = {}

    def quantize(self, node: fx.Node, position: int) -> None:
        weight = node.args[position]
        row = self.context.table.of(node)
        assert isinstance(weight, fx.Node) and row is not None
        axis = self.context.target.channel_axis(row, node, quant_of(node).qconfig)
        shrink = self.context.target.shrinks(row, node)
        key = (str(weight.target), axis, shrink)
        if key not in self.done:
            self.done[key] = self._make(node, weight, axis, shrink)
        args = list(node.args)
        args[position] = self.done[key]
        node.args = tuple(args)

    def _make(self, node: fx.Node, weight: fx.Node, axis: int | None, shrink: bool) -> fx.Node:
        gm, path = self.gm, str(weight.target)
        value = attribute(gm, path).detach()
        scale, zero_point, (low, high) = self._qparams(node, value, axis)
        if shrink:
            scale = self._safe(node, value, scale)
        kept = f"{path}_int8" if _has_float_users(self.context, weight) else path
        while kept != path and hasattr(gm.get_submodule(kept.rpartition(".")[0]), kept.rpartition(".")[2]):
            kept += "_"
        first = min(weight.users)  # nodes compare by their place in the graph
        with gm.graph.inserting_before(first):
            set_attribute(gm, kept, quantize_weight(value, scale, zero_point, axis, low, high))
            set_attribute(gm, f"{kept}_scale", scale)
            set_attribute(gm, f"{kept}_zero_point", zero_point)
            parts = [get_attr(gm, f"{kept}{suffix}", source_of(node)) for suffix in ("", "_scale", "_zero_point")]
            return _call(gm, weight, dequantize_weight, (*parts, axis), f"{weight.name}_dq", torch.float32)

    def _safe(self, node: fx.Node, value: Tensor, scale: Tensor) -> Tensor:
        """The proof that the kernel's sums cannot overflow, for the weights as they are now; larger scales where it fails."""
        safe: Tensor = self.context.target.shrink_to_safe(value, scale)
        if quant_of(node).weight is not None and not torch.equal(safe, scale):
            self.context.remark("insert_quantize_dequantize", "weight-scale", "the weight was trained with scales at which the kernel's "
                                "16-bit sums could overflow: they are enlarged, results differ from training", node)  # fmt: skip
        return safe

    def _qparams(self, node: fx.Node, value: Tensor, axis: int | None) -> tuple[Tensor, Tensor, tuple[int, int]]:
        if (p := quant_of(node).weight) is not None:
            scales, zeros = torch.tensor(p.scale, dtype=torch.float64), torch.tensor(p.zero_point, dtype=torch.int64)
            return scales.reshape(-1), zeros.reshape(-1), (p.quant_min, p.quant_max)
        observer = quant_of(node).qconfig.weight()
        if axis is None and observer.is_per_channel:
            observer = self.context.target.per_tensor_weight_observer(observer)
            self.context.remark(
                "insert_quantize_dequantize", "weight-per-tensor", "its kernel takes one weight scale, not one per channel", node
            )
        if axis is not None:
            observer.ch_axis = axis
        try:
            observer(value)
        except NumericsError as error:
            raise NumericsError(f"weight: {error.message}", code=error.code, where=where(node)) from error
        for code, text in (("zero-channel", empty_channels(observer)), ("tiny-range", floored(observer))):
            if text:
                self.context.remark("insert_quantize_dequantize", code, f"weight {text}", node)
        scale, zero_point = observer.calculate_qparams()
        return scale.reshape(-1).double(), zero_point.reshape(-1).to(torch.int64), (observer.quant_min, observer.quant_max)


def _has_float_users(context: Context, weight: fx.Node) -> bool:
    def int8_weight(user: fx.Node) -> bool:
        row = context.table.of(user)
        return quant_of(user).int8 and row is not None and row.weight is not None and user.args[row.weight] is weight

    return not all(int8_weight(user) for user in weight.users)
