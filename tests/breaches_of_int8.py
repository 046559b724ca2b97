"""Breaches of the rules of QUANTIZED for values, weights, bounds and modes, and of LOWERED."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from qcompiler.ir.attributes import attribute, set_attribute
from qcompiler.ir.types import QUANT, VALUE, Mode, Stage, Value, quant_of, value_of
from qcompiler.ops import functional as Q
from qcompiler.ops.reference import dequantize, quantize
from tests.planted_breaches import P, a_call, breach, first, note, swap

# ---- int8 values


@breach(Stage.QUANTIZED, code="ir-integers", text="without a dequantize")
def integers_fed_to_a_convolution(gm: fx.GraphModule) -> None:
    node = first(gm, Q.conv2d)
    node.args = (node.args[0].args[0], *node.args[1:])  # type: ignore[union-attr]


@breach(Stage.QUANTIZED, code="ir-integers", text="without a dequantize")
def integers_as_result(gm: fx.GraphModule) -> None:
    output = next(n for n in gm.graph.nodes if n.op == "output")
    output.args = ((output.args[0], first(gm, quantize)),)


@breach(Stage.QUANTIZED, code="ir-int8-input", text="which nothing quantizes")
def floats_fed_to_an_int8_op(gm: fx.GraphModule) -> None:
    node = first(gm, Q.conv2d)
    node.args = (next(iter(gm.graph.nodes)), *node.args[1:])


@breach(Stage.QUANTIZED, code="ir-int8-output", text="before it is quantized")
def floats_of_an_int8_op(gm: fx.GraphModule) -> None:
    node = first(gm, torch.cumsum)
    node.args = (node.args[0].args[0].args[0], *node.args[1:])  # type: ignore[union-attr]


@breach(Stage.QUANTIZED, code="ir-int8-output", text="whose parts are integers")
def a_tuple_that_a_float_op_takes(gm: fx.GraphModule) -> None:
    note(first(gm, Q.getitem), int8=False, reason="a float op", qparams=None)


@breach(Stage.QUANTIZED, code="ir-value", text="its shape is not noted")
def an_int8_op_without_a_shape(gm: fx.GraphModule) -> None:
    a_call(gm).meta[VALUE] = Value(None, None)


@breach(Stage.QUANTIZED, code="ir-value", text="its shape is not noted")
def integers_without_a_shape(gm: fx.GraphModule) -> None:
    first(gm, dequantize).meta[VALUE] = Value(None, None)


@breach(Stage.QUANTIZED, code="ir-conversion", text="uses other qparams than")
def another_scale(gm: fx.GraphModule) -> None:
    swap(first(gm, dequantize), 1, 0.5)


@breach(Stage.QUANTIZED, code="ir-conversion", text="uses other qparams than")
def another_zero_point(gm: fx.GraphModule) -> None:
    swap(first(gm, quantize), 2, 7)


@breach(Stage.QUANTIZED, code="ir-conversion", text="uses other qparams than")
def another_range(gm: fx.GraphModule) -> None:
    swap(first(gm, quantize), 4, 100)


@breach(Stage.QUANTIZED, code="ir-conversion", text="uses other qparams than")
def another_dtype(gm: fx.GraphModule) -> None:
    swap(first(gm, quantize), 5, torch.int8)


@breach(Stage.QUANTIZED, code="ir-conversion", text="its qparams are torch.uint8")
def another_dtype_noted(gm: fx.GraphModule) -> None:
    node = first(gm, quantize)
    node.meta[VALUE] = Value(value_of(node).shape, torch.int8)


@breach(Stage.QUANTIZED, code="ir-conversion", text="another shape")
def another_shape(gm: fx.GraphModule) -> None:
    node = first(gm, dequantize)
    node.meta[VALUE] = Value((1, 2), torch.float32)


@breach(Stage.QUANTIZED, code="ir-conversion", text="integers without qparams")
def integers_without_qparams(gm: fx.GraphModule) -> None:
    del first(gm, quantize).meta[QUANT]


@breach(Stage.QUANTIZED, code="ir-conversion", text="which is no quantize")
def a_dequantize_of_floats(gm: fx.GraphModule) -> None:
    node = a_call(gm)
    with gm.graph.inserting_after(node):
        made = gm.graph.call_function(dequantize, (node, *next(iter(node.users)).args[1:3]))
    made.meta[VALUE] = node.meta[VALUE]
    note(node, float_output=True, qparams=None)
    note(node, float_output=False, qparams=quant_of(next(iter(node.users))).qparams, int8=False, reason="a float op")


@breach(Stage.QUANTIZED, code="ir-copy", text="has other qparams")
def a_copy_with_other_qparams(gm: fx.GraphModule) -> None:
    node = first(gm, torch.flatten)
    for n in (node, next(iter(node.users))):
        note(n, qparams=P, group=None)
    for n in (q := next(iter(node.users)), next(iter(q.users))):
        n.args = (n.args[0], P.scale, P.zero_point, *n.args[3:])


@breach(Stage.OBSERVED, Stage.QUANTIZED, code="ir-group", text="of its group")
def a_group_with_two_qparams(gm: fx.GraphModule) -> None:
    calls = [n for n in gm.graph.nodes if quant_of(n).group is not None][:2]
    for n, p in zip(calls, (P, replace(P, scale=0.25)), strict=True):
        note(n, group=99, qparams=quant_of(n).qparams or p)


# ---- weights, biases, bounds, modes


def _weight(gm: fx.GraphModule) -> tuple[fx.Node, fx.Node]:
    """A convolution and the dequantize_weight that it reads."""
    node = first(gm, Q.conv2d)
    return node, node.args[1]  # type: ignore[return-value]


def _set(gm: fx.GraphModule, node: Any, value: Tensor) -> None:
    set_attribute(gm, str(node.target), value)
    node.meta[VALUE] = Value.of(value)


@breach(Stage.QUANTIZED, code="ir-weight", text="does not stand behind dequantize_weight")
def raw_codes_as_a_weight(gm: fx.GraphModule) -> None:
    node, weight = _weight(gm)
    swap(node, 1, weight.args[0])


@breach(Stage.QUANTIZED, code="ir-weight", text="does not stand behind dequantize_weight")
def a_float_weight(gm: fx.GraphModule) -> None:
    node, weight = _weight(gm)
    set_attribute(gm, "plain", attribute(gm, str(weight.args[0].target)).float())  # type: ignore[union-attr]
    with gm.graph.inserting_before(node):
        made = gm.graph.get_attr("plain")
    made.meta[VALUE] = value_of(weight)
    swap(node, 1, made)


@breach(Stage.QUANTIZED, code="ir-weight", text="has codes of torch.uint8")
def an_unsigned_weight(gm: fx.GraphModule) -> None:
    codes = _weight(gm)[1].args[0]
    _set(gm, codes, attribute(gm, str(codes.target)).to(torch.uint8))  # type: ignore[union-attr]


@breach(Stage.QUANTIZED, code="ir-weight", text="has codes of shape")
def a_weight_of_another_shape(gm: fx.GraphModule) -> None:
    _set(gm, _weight(gm)[1].args[0], torch.zeros(8, 3, 1, 1, dtype=torch.int8))


@breach(Stage.QUANTIZED, code="ir-weight", text="not that of the channels")
def scales_along_another_dimension(gm: fx.GraphModule) -> None:
    weight = _weight(gm)[1]
    swap(weight, 3, 1)
    for part in weight.args[1:3]:
        _set(gm, part, attribute(gm, str(part.target))[:3].clone())  # type: ignore[union-attr]


@breach(Stage.QUANTIZED, code="ir-weight", text="for 8")
def too_few_scales(gm: fx.GraphModule) -> None:
    _set(gm, _weight(gm)[1].args[1], torch.ones(1, dtype=torch.float64))


@breach(Stage.QUANTIZED, code="ir-weight", text="above 0 and float64")
def a_weight_scale_of_zero(gm: fx.GraphModule) -> None:
    _set(gm, _weight(gm)[1].args[1], torch.zeros(8, dtype=torch.float64))


@breach(Stage.QUANTIZED, code="ir-weight", text="above 0 and float64")
def float32_scales(gm: fx.GraphModule) -> None:
    _set(gm, _weight(gm)[1].args[1], torch.ones(8))


@breach(Stage.QUANTIZED, code="ir-weight", text="wrong zero point")
def a_zero_point_outside_int8(gm: fx.GraphModule) -> None:
    _set(gm, _weight(gm)[1].args[2], torch.full((8,), 200))


@breach(Stage.QUANTIZED, code="ir-weight", text="not made of three parameters")
def computed_scales(gm: fx.GraphModule) -> None:
    weight = _weight(gm)[1]
    swap(weight, 1, next(iter(gm.graph.nodes)))


@breach(Stage.QUANTIZED, code="ir-weight", text="is packed in 4 bits", model="sequence 4 bits")
def four_bits_under_another_mode(gm: fx.GraphModule) -> None:
    note(next(n for n in gm.graph.nodes if quant_of(n).mode is Mode.FOUR_BIT), mode=Mode.WEIGHT_ONLY)


@breach(Stage.QUANTIZED, code="ir-weight", text="is not packed in 4 bits", model="sequence dynamic")
def int8_under_four_bits(gm: fx.GraphModule) -> None:
    node = first(gm, Q.linear)
    node.args[0].replace_all_uses_with(node.args[0].args[0])  # type: ignore[union-attr, arg-type]
    note(node, mode=Mode.FOUR_BIT)


@breach(Stage.QUANTIZED, code="ir-weight", text="no float16 parameter behind widen", model="sequence float16")
def a_float32_weight_under_float16(gm: fx.GraphModule) -> None:
    held = first(gm, Q.linear).args[1].args[0]  # type: ignore[union-attr]
    _set(gm, held, attribute(gm, str(held.target)).float())  # type: ignore[union-attr]


@breach(Stage.QUANTIZED, code="ir-bias", text="a bias stays float32")
def an_integer_bias(gm: fx.GraphModule) -> None:
    _set(gm, first(gm, Q.conv2d).args[2], torch.zeros(8, dtype=torch.int32))


@breach(Stage.QUANTIZED, code="ir-bias", text="for (8,) channels")
def a_bias_of_another_length(gm: fx.GraphModule) -> None:
    _set(gm, first(gm, Q.conv2d).args[2], torch.zeros(4))


def _bounds(gm: fx.GraphModule, value: Any) -> None:
    node = first(gm, Q.conv2d)
    node.kwargs = {**node.kwargs, "bounds": value}


@breach(Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED, code="ir-bounds", text="are a pair")
def three_bounds(gm: fx.GraphModule) -> None:
    _bounds(gm, (0.0, 1.0, 2.0))


@breach(Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED, code="ir-bounds", text="numbers or None")
def a_bound_that_is_no_number(gm: fx.GraphModule) -> None:
    _bounds(gm, (float("nan"), 1.0))


@breach(Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED, code="ir-bounds", text="hold no number")
def bounds_in_the_wrong_order(gm: fx.GraphModule) -> None:
    _bounds(gm, (6.0, 0.0))


@breach(Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED, code="ir-bounds", text="takes no bounds")
def bounds_at_a_copy(gm: fx.GraphModule) -> None:
    node = first(gm, torch.flatten)
    node.kwargs = {**node.kwargs, "bounds": (0.0, 1.0)}


@breach(Stage.QUANTIZED, code="ir-mode", text="has no input that is rounded at run time", model="sequence dynamic")
def dynamic_without_rounding(gm: fx.GraphModule) -> None:
    rounded = first(gm, Q.linear).args[0]
    rounded.replace_all_uses_with(rounded.args[0])  # type: ignore[union-attr, arg-type]


@breach(Stage.QUANTIZED, code="ir-mode", text="but is not int8 dynamic", model="sequence dynamic")
def rounding_under_another_mode(gm: fx.GraphModule) -> None:
    note(first(gm, Q.linear), mode=Mode.WEIGHT_ONLY)


@breach(Stage.QUANTIZED, code="ir-mode", text="no activation_range", model="sequence")
def a_recurrent_layer_without_a_range(gm: fx.GraphModule) -> None:
    node = next(n for n in gm.graph.nodes if "activation_range" in n.kwargs)
    node.kwargs = {k: v for k, v in node.kwargs.items() if k != "activation_range"}


# ---- LOWERED


@breach(Stage.LOWERED, code="ir-once", text="which is no constant")
def a_pack_of_an_input(gm: fx.GraphModule) -> None:
    node = next(n for n in gm.graph.nodes if getattr(n.target, "once", False))
    swap(node, 0, next(iter(gm.graph.nodes)))
