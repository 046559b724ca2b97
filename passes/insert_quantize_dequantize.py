"""Makes quantization explicit: quantize and dequantize behind each value with qparams, int8 weights behind dequantize_weight.

What is quantized at run time stands behind dynamic_quantize_dequantize, float16 weights behind widen, 4-bit ones behind unpack_4bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompiler.compile.pass_manager import Context
from qcompiler.config.qconfig_of_op import channel_axis, weight_observer
from qcompiler.errors import ConfigError, NumericsError
from qcompiler.ir.attributes import attribute, get_attr, set_attribute, unused_path
from qcompiler.ir.names import user_path
from qcompiler.ir.types import QUANT, SOURCE, VALUE, Mode, QParams, Quant, Stage, Value, quant_of, source_of, value_of
from qcompiler.ir.verify import where
from qcompiler.observers.ranges import empty_channels, floored
from qcompiler.observers.weights import of_few, of_few_held, take_axis
from qcompiler.ops.arguments import activations, replace_activations
from qcompiler.ops.reference import (
    dequantize,
    dequantize_weight,
    dynamic_quantize_dequantize,
    pack_4bit,
    quantize,
    quantize_weight,
    unpack_4bit,
    widen,
)
from qcompiler.ops.spec import Family, Op
from qcompiler.target import WeightLimit

ENLARGED = ("the weight was trained with scales at which the kernel's 16-bit sums could overflow: they are enlarged, results differ from "
            "training")  # fmt: skip


@dataclass(frozen=True)
class InsertQuantizeDequantize:
    name: str = "insert_quantize_dequantize"
    stage: Stage = Stage.QUANTIZED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        weights = _Weights(gm, context)
        for node in list(gm.graph.nodes):
            if (quant_of(node).int8 or quant_of(node).mode) and (row := context.table.of(node)) is not None:
                for weight in row.weights(node):
                    weights.quantize(node, row, weight)
                if quant_of(node).mode is Mode.DYNAMIC:
                    _quantize_at_run_time(gm, node, row, context)
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


def _quantize_at_run_time(gm: fx.GraphModule, node: fx.Node, row: Op, context: Context) -> None:
    """x -> dynamic_quantize_dequantize(x) for one op; recurrent ops do it inside, at every step."""
    low, high = context.target.activation_range(row, node, quant_of(node).qconfig)
    if row.rounds_inside:
        node.kwargs = {**node.kwargs, "activation_range": (low, high)}
        return
    x: Any = node.args[0]
    with gm.graph.inserting_before(node):
        rounded = _call(gm, x, dynamic_quantize_dequantize, (x, low, high), f"{x.name}_dynamic", torch.float32)
    node.args = (rounded, *node.args[1:])


class _Weights:
    """Quantized weights under their own names; a weight that several ops share, tied ones too, is quantized once."""

    def __init__(self, gm: fx.GraphModule, context: Context) -> None:
        self.gm, self.context = gm, context
        self.done: dict[tuple[Any, ...], fx.Node] = {}
        self.made: dict[tuple[Any, ...], tuple[Tensor, ...]] = {}
        self.read_as_floats = _read_as_floats(gm, context)
        self.floats: dict[str, Tensor] = {}  # by path, as they were: the module's are replaced on the way

    def quantize(self, node: fx.Node, row: Op, weight: fx.Node) -> None:
        trained, limit = quant_of(weight).weight, self.context.target.weight_limit(row, node)
        axis = channel_axis(row, quant_of(node).qconfig) if trained is None else trained.channel_axis
        kind = (axis, limit, quant_of(node).mode in (Mode.HALF, Mode.FOUR_BIT), self._observer(node).dtype, trained)
        key = (str(weight.target), *kind)
        if key not in self.done:
            self.done[key] = self._make(node, weight, axis, limit, kind)
        node.replace_input_with(weight, self.done[key])

    def _observer(self, node: fx.Node) -> Any:
        row = self.context.table.of(node)
        assert row is not None
        return weight_observer(row, quant_of(node).qconfig)

    def _make(self, node: fx.Node, weight: fx.Node, axis: int | None, limit: WeightLimit | None, kind: tuple[object, ...]) -> fx.Node:
        gm, path = self.gm, str(weight.target)
        value = self.floats.setdefault(path, attribute(gm, path).detach())
        tied = (value.data_ptr(), value.shape, value.stride(), *kind)
        kept = self._path(weight)
        scales = self.context.settings.corrections.scales.get(user_path(gm, kept))
        if tied not in self.made or scales is not None:
            self.made[tied] = self._tensors(node, weight, axis, limit, scales)
        tensors = self.made[tied]
        beside = (unused_path(gm, f"{kept}_{part}") for part in ("scale", "zero_point")[: len(tensors) - 1])
        paths = (kept, *beside)
        first = min(weight.users)  # nodes compare by their place in the graph
        with gm.graph.inserting_before(first):
            for place, tensor in zip(paths, tensors, strict=True):
                set_attribute(gm, place, tensor)
            parts = [get_attr(gm, place, source_of(node)) for place in paths]
            return self._float(weight, parts, axis, quant_of(node).mode)

    def _path(self, weight: fx.Node) -> str:
        """Where the integers stand: under the weight's name, or beside it where the floats, or integers of another kind, are kept."""
        path = str(weight.target)
        other = any(key[0] == path for key in self.done)
        return unused_path(self.gm, f"{path}_int8") if other or path in self.read_as_floats else path

    def _float(self, weight: fx.Node, parts: list[fx.Node], axis: int | None, mode: Mode | None) -> fx.Node:
        """The node with the weight's float32 values."""
        name = f"{weight.name}_dq"
        if mode is Mode.HALF:
            return _call(self.gm, weight, widen, (parts[0],), name, torch.float32)
        if mode is Mode.FOUR_BIT:
            columns = (value_of(weight).shape or (0,))[-1]
            parts[0] = _call(self.gm, weight, unpack_4bit, (parts[0], columns), f"{weight.name}_codes", torch.uint8)
        return _call(self.gm, weight, dequantize_weight, (*parts, axis), name, torch.float32)

    def _tensors(self, node: fx.Node, weight: fx.Node, axis: int | None, limit: WeightLimit | None, given: Tensor | None
                 ) -> tuple[Tensor, ...]:  # fmt: skip
        """What is stored: the float16 weight, or codes, scale and zero point. `given`: the user's scales."""
        mode, trained, value = quant_of(node).mode, quant_of(weight).weight, self.floats[str(weight.target)]
        if mode is Mode.HALF:
            return (_halved(node, value),)
        p = trained or self._observed(node, value, axis)
        p = p.signed() if mode in (None, Mode.DYNAMIC) else p  # such kernels take int8 weights; others read the codes of either
        scale, zero_point = torch.tensor(p.scale, dtype=torch.float64).reshape(-1), torch.tensor(p.zero_point).reshape(-1)
        zero_point = zero_point.double() if zero_point.is_floating_point() else zero_point.to(torch.int64)
        scale = scale if given is None else _checked(given, scale, node)
        if limit is not None:
            safe = limit.qparams(value, scale, zero_point, p.quant_max)
            if given is not None and not torch.equal(scale, safe[0]):
                raise ConfigError(f"the scales of {weight.target} in corrections could overflow the kernel's 16-bit sums",
                                  code="correction", where=where(node), hint="larger ones, or none: then safe ones are found")  # fmt: skip
            if trained is not None and not all(map(torch.equal, (scale, zero_point), safe)):
                self.context.remark("insert_quantize_dequantize", "weight-scale", ENLARGED, node)
            held = trained is None and given is None and axis is not None and self._is_depthwise(node, value)
            scale, zero_point = (of_few_held(value, safe[0], scale, axis or 0, limit.holds) if held else safe[0]), safe[1]
        codes = quantize_weight(value, scale, zero_point, axis, p.quant_min, p.quant_max, p.dtype)
        return pack_4bit(codes) if mode is Mode.FOUR_BIT else codes, scale, zero_point

    def _observed(self, node: fx.Node, value: Tensor, axis: int | None) -> QParams:
        observer = self._observer(node)
        if axis is not None:
            take_axis(observer, axis, value, where(node))
        try:
            observer(value)
            qparams: QParams = observer.qparams()
        except NumericsError as error:
            raise NumericsError(f"weight: {error.message}", code=error.code, where=where(node)) from error
        for code, text in (("zero-channel", empty_channels(observer)), ("tiny-range", floored(observer))):
            if text:
                self.context.remark("insert_quantize_dequantize", code, f"weight {text}", node)
        return of_few(value, qparams) if self._is_depthwise(node, value) else qparams

    def _is_depthwise(self, node: fx.Node, weight: Tensor) -> bool:
        row = self.context.table.of(node)
        return row is not None and row.family is Family.CONVOLUTION and weight.shape[1] == 1 and bool(node.kwargs.get("groups", 1) != 1)


def _checked(given: Tensor, own: Tensor, node: fx.Node) -> Tensor:
    """Scales that the user gives in the place of `own`."""
    if given.shape != own.shape or given.dtype is not own.dtype or not bool((given > 0).all()):
        text = f"the scales in corrections are {given.dtype}{list(given.shape)}, and must be {own.dtype}{list(own.shape)} above 0"
        raise ConfigError(text, code="correction", where=where(node), hint="corrections fit the model that they were made from")
    return given


def _halved(node: fx.Node, value: Tensor) -> Tensor:
    half = value.to(torch.float16)
    if not bool(torch.isfinite(half).all()):
        raise NumericsError("weight: float16 holds values up to 65504, this one has larger ones or no numbers", code="range",
                            where=where(node), hint="give this op a qconfig with int8 weights, or None")  # fmt: skip
    return half


def _read_as_floats(gm: fx.GraphModule, context: Context) -> set[str]:
    """The tensors that something reads which is no op with that weight in integers; several nodes may stand for one tensor."""

    def quantized_weight(user: fx.Node, weight: fx.Node) -> bool:
        row = context.table.of(user)
        return (quant_of(user).int8 or quant_of(user).mode is not None) and row is not None and weight in row.weights(user)

    tensors = [node for node in gm.graph.nodes if node.op == "get_attr"]
    return {str(node.target) for node in tensors if not all(quantized_weight(user, node) for user in node.users)}
