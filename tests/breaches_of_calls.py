"""Breaches of how calls are made, of notes that say other things than what is held, of who reads a result, and of ranges."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from qcompiler.ir.attributes import set_attribute
from qcompiler.ir.types import QUANT, VALUE, QParams, Quant, Stage, Value, quant_of, value_of
from qcompiler.ops import functional as Q
from qcompiler.ops.reference import dequantize, dequantize_weight, quantize, unpack_4bit
from tests.planted_breaches import P, a_call, breach, first, note, swap

FLOAT = Quant(reason="a float op")


def beside(node: fx.Node, target: Any, args: tuple[Any, ...], quant: Quant, value: Value | None = None, **kwargs: Any) -> fx.Node:
    """A new call behind a node, which nothing reads yet."""
    with node.graph.inserting_after(node):
        made = node.graph.call_function(target, args, kwargs)
    made.meta.update({VALUE: value_of(node) if value is None else value, QUANT: quant})
    return made


def the_input(gm: fx.GraphModule) -> fx.Node:
    return next(iter(gm.graph.nodes))


# ---- how an op is called


def _keyword(gm: fx.GraphModule, **changes: Any) -> None:
    node = first(gm, Q.conv2d)
    node.kwargs = {**node.kwargs, **changes}


@breach(Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED, code="ir-call", text="has no setting strides")
def a_setting_that_does_not_exist(gm: fx.GraphModule) -> None:
    _keyword(gm, strides=(2, 2))


@breach(Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED, code="ir-call", text="gives the tensor bias as a keyword")
def a_tensor_as_keyword(gm: fx.GraphModule) -> None:
    node = first(gm, Q.conv2d)
    node.args, node.kwargs = node.args[:2], {**node.kwargs, "bias": node.args[2]}


@breach(Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED, code="ir-call", text="gives no weight, which linear needs")
def a_linear_without_a_weight(gm: fx.GraphModule) -> None:
    node = first(gm, Q.linear)
    node.args = node.args[:1]


@breach(Stage.QUANTIZED, code="ir-target", text="calls a Conv2d of torch.nn, which takes floats")
def a_float_module_in_int8(gm: fx.GraphModule) -> None:
    gm.add_module("plain", nn.Conv2d(3, 3, 1).eval())
    integers = first(gm, dequantize)
    with gm.graph.inserting_after(integers):
        made = gm.graph.call_module("plain", (integers,))
    made.meta.update({VALUE: value_of(integers), QUANT: Quant(int8=True, qparams=P)})


@breach(Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED, Stage.LOWERED, code="ir-order", text="stands behind the output")
def a_call_behind_the_output(gm: fx.GraphModule) -> None:
    output = next(n for n in gm.graph.nodes if n.op == "output")
    beside(output, torch.cumsum, (the_input(gm), 1), FLOAT, value_of(the_input(gm)))


# ---- notes


@breach(Stage.QUANTIZED, code="ir-value", text="is torch.int64, not float32")
def integers_of_integers(gm: fx.GraphModule) -> None:
    the_input(gm).meta[VALUE] = Value((1, 3, 8, 8), torch.int64)


@breach(Stage.QUANTIZED, code="ir-value", text="is torch.float64, not float32")
def floats_of_another_width(gm: fx.GraphModule) -> None:
    first(gm, dequantize).meta[VALUE] = Value((1, 3, 8, 8), torch.float64)


@breach(Stage.QUANTIZED, code="ir-value", text="is torch.float16, not float32")
def a_weight_of_another_width(gm: fx.GraphModule) -> None:
    node = first(gm, dequantize_weight)
    node.meta[VALUE] = Value(value_of(node).shape, torch.float16)


@breach(Stage.QUANTIZED, code="ir-value", text="is torch.float64, not float32")
def an_int8_op_of_another_width(gm: fx.GraphModule) -> None:
    node = first(gm, Q.conv2d)
    node.meta[VALUE] = Value(value_of(node).shape, torch.float64)


def _bias(gm: fx.GraphModule, value: Tensor) -> None:
    set_attribute(gm, str(first(gm, Q.conv2d).args[2].target), value)  # type: ignore[union-attr]


@breach(Stage.QUANTIZED, code="ir-value", text="is torch.int32[8], and noted as torch.float32[8]")
def a_bias_that_is_not_what_is_noted(gm: fx.GraphModule) -> None:
    _bias(gm, torch.zeros(8, dtype=torch.int32))


@breach(Stage.QUANTIZED, code="ir-value", text="is torch.float32[4], and noted as torch.float32[8]")
def a_bias_that_is_shorter_than_noted(gm: fx.GraphModule) -> None:
    _bias(gm, torch.zeros(4))


@breach(Stage.QUANTIZED, code="ir-value", text="gives (1, 7, 6, 6), with a weight of (8, 3, 3, 3)")
def channels_that_no_weight_has(gm: fx.GraphModule) -> None:
    node = first(gm, Q.conv2d)
    integers = next(iter(node.users))
    for n in (node, integers, *integers.users):
        n.meta[VALUE] = Value((1, 7, 6, 6), value_of(n).dtype)


@breach(Stage.QUANTIZED, code="ir-value", text="in 0 groups")
def no_groups(gm: fx.GraphModule) -> None:
    _keyword(gm, groups=0)


# ---- who reads a result


@breach(Stage.QUANTIZED, code="ir-int8-output", text="no nodes quantize the result")
def an_int8_op_that_nothing_reads(gm: fx.GraphModule) -> None:
    node = first(gm, Q.conv2d)
    beside(node, node.target, node.args, quant_of(node), None, **node.kwargs)


@breach(Stage.QUANTIZED, code="ir-int8-output", text="2 nodes quantize the result")
def a_result_that_is_quantized_twice(gm: fx.GraphModule) -> None:
    once = next(iter(first(gm, Q.conv2d).users))
    beside(once, quantize, once.args, quant_of(once))


@breach(Stage.QUANTIZED, code="ir-int8-output", text="rounds to other qparams than")
def a_result_on_other_steps(gm: fx.GraphModule) -> None:
    node = first(gm, Q.conv2d)
    note(node, qparams=QParams(0.25, 9, 0, 255, torch.uint8), group=None)


@breach(Stage.QUANTIZED, code="ir-integers", text="nothing reads the integers")
def integers_that_nothing_reads(gm: fx.GraphModule) -> None:
    integers = first(gm, quantize)
    beside(integers, quantize, integers.args, quant_of(integers))


# ---- weights, and ranges


@breach(Stage.QUANTIZED, code="ir-weight", text="is torch.int8, and the op computes in float")
def a_float_op_with_raw_codes(gm: fx.GraphModule) -> None:
    node = first(gm, Q.conv2d)
    beside(node, Q.conv2d, (the_input(gm), node.args[1].args[0]), FLOAT)  # type: ignore[union-attr]


@breach(Stage.QUANTIZED, code="ir-weight", text="has scales that are not finite, above 0 and float64")
def a_float_op_with_zero_points_as_scales(gm: fx.GraphModule) -> None:
    node = first(gm, Q.conv2d)
    weight: Any = node.args[1]
    beside(weight, dequantize_weight, (weight.args[0], weight.args[2], weight.args[2], 0), Quant())


@breach(Stage.QUANTIZED, code="ir-weight", text="does not give codes, scale, zero point and dimension in order")
def a_dimension_as_keyword(gm: fx.GraphModule) -> None:
    weight = first(gm, dequantize_weight)
    weight.args, weight.kwargs = weight.args[:3], {"axis": weight.args[3]}


@breach(Stage.QUANTIZED, code="ir-weight", text="and zero points of torch.float64, not int8 and int64")
def zero_points_between_steps(gm: fx.GraphModule) -> None:
    held: Any = first(gm, dequantize_weight).args[2]
    set_attribute(gm, str(held.target), torch.full((8,), 0.5, dtype=torch.float64))
    held.meta[VALUE] = Value((8,), torch.float64)


@breach(Stage.QUANTIZED, code="ir-weight", text="columns are read from (50, 4)", model="sequence 4 bits")
def more_columns_than_are_packed(gm: fx.GraphModule) -> None:
    swap(first(gm, unpack_4bit), 1, 32)


@breach(Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED, code="ir-bounds", text="hold no number")
def bounds_beyond_all_numbers(gm: fx.GraphModule) -> None:
    _keyword(gm, bounds=(math.inf, math.inf))


@breach(Stage.QUANTIZED, code="ir-mode", text="which is no range of 8 bits", model="sequence dynamic")
def a_range_that_is_reversed(gm: fx.GraphModule) -> None:
    rounded: Any = first(gm, Q.linear).args[0]
    rounded.args = (rounded.args[0], 255, 0)


@breach(Stage.QUANTIZED, code="ir-mode", text="which is no range of 8 bits", model="sequence dynamic")
def a_range_of_more_bits(gm: fx.GraphModule) -> None:
    swap(first(gm, Q.linear).args[0], 2, 70_000)  # type: ignore[arg-type]


@breach(Stage.QUANTIZED, code="ir-mode", text="which is no range of 8 bits", model="sequence")
def a_range_of_three_numbers(gm: fx.GraphModule) -> None:
    node = next(n for n in gm.graph.nodes if "activation_range" in n.kwargs)
    node.kwargs = {**node.kwargs, "activation_range": (0, 255, 1)}


@breach(Stage.QUANTIZED, code="ir-qparams", text="a scale must be finite and positive")
def a_negative_scale(gm: fx.GraphModule) -> None:
    note(a_call(gm), qparams=replace(P, scale=-0.5))
