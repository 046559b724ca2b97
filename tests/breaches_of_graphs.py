"""Breaches of the rules that hold of whole graphs: form, targets, decisions, qparams, observers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from qcompiler.ir.types import QUANT, VALUE, Mode, QParams, Quant, Stage, Value, quant_of
from qcompiler.ops import functional as Q
from qcompiler.ops.reference import dequantize, quantize, widen
from tests.planted_breaches import P, a_call, at, behind, breach, first, note

# ---- any stage


@breach(Stage.TRACED, Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED, Stage.LOWERED, code="invalid-ir", text="used before it is computed")
def a_use_before_its_definition(gm: fx.GraphModule) -> None:
    calls = [n for n in gm.graph.nodes if n.op == "call_function"]
    calls[0].args = (calls[-1], *calls[0].args[1:])


@breach(Stage.TRACED, Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED, Stage.LOWERED, code="invalid-ir", text="two nodes have the name")
def one_name_twice(gm: fx.GraphModule) -> None:
    calls = [n for n in gm.graph.nodes if n.op == "call_function"]
    calls[1].name = calls[0].name


@breach(Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED, Stage.LOWERED, code="invalid-ir", text="does not exist")
def a_parameter_that_is_gone(gm: fx.GraphModule) -> None:
    next(n for n in gm.graph.nodes if n.op == "get_attr").target = "gone.weight"


@breach(Stage.TRACED, Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED, Stage.LOWERED, code="invalid-ir", text="cannot be called so")
def a_function_that_is_a_string(gm: fx.GraphModule) -> None:
    next(n for n in gm.graph.nodes if n.op == "call_function").target = "bogus"


@breach(Stage.TRACED, Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED, Stage.LOWERED, code="ir-value", text="a shape without a dtype")
def a_shape_without_a_dtype(gm: fx.GraphModule) -> None:
    next(iter(gm.graph.nodes)).meta[VALUE] = Value((1, 3, 8, 8), None)


@breach(Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED, code="ir-value", text="no note of its shape and dtype")
def a_node_without_a_note(gm: fx.GraphModule) -> None:
    del a_call(gm).meta[VALUE]


# ---- targets


@breach(Stage.TRACED, Stage.FUSED, Stage.OBSERVED, Stage.LOWERED, code="ir-conversion", text="belongs to QUANTIZED")
def a_quantize_at_another_stage(gm: fx.GraphModule) -> None:
    behind(next(iter(gm.graph.nodes)), quantize, 0.5, 3, 0, 255, torch.uint8)


@breach(Stage.TRACED, Stage.FUSED, Stage.OBSERVED, Stage.LOWERED, code="ir-conversion", text="belongs to QUANTIZED")
def a_dequantize_at_another_stage(gm: fx.GraphModule) -> None:
    behind(next(iter(gm.graph.nodes)), dequantize, 0.5, 3)


@breach(Stage.TRACED, Stage.FUSED, Stage.OBSERVED, code="ir-conversion", text="belongs to QUANTIZED")
def a_float16_weight_too_early(gm: fx.GraphModule) -> None:
    behind(next(iter(gm.graph.nodes)), widen)


@breach(Stage.TRACED, Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED, code="ir-target", text="a function of a back end")
def a_function_of_a_back_end(gm: fx.GraphModule) -> None:
    lowered = at(Stage.LOWERED).graph.nodes
    function: Any = next(n.target for n in lowered if str(getattr(n.target, "__module__", "")).startswith("qcompiler.backends."))
    behind(next(iter(gm.graph.nodes)), function)


@breach(Stage.OBSERVED, Stage.QUANTIZED, code="ir-target", text="the overload aten.conv2d.default")
def an_overload_as_int8_op(gm: fx.GraphModule) -> None:
    first(gm, Q.conv2d).target = torch.ops.aten.conv2d.default


@breach(Stage.OBSERVED, Stage.QUANTIZED, code="ir-target", text="the overload aten.relu.default")
def an_overload_that_nobody_decided_on(gm: fx.GraphModule) -> None:
    del behind(first(gm, torch.cumsum), torch.ops.aten.relu.default).meta[QUANT]


@breach(Stage.OBSERVED, Stage.QUANTIZED, code="ir-target", text="is no op of the table")
def int8_without_a_row(gm: fx.GraphModule) -> None:
    note(first(gm, torch.cumsum), int8=True, reason=None, qparams=P)


@breach(Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED, code="ir-call", text="a spelling of relu")
def a_spelling_that_is_not_canonical(gm: fx.GraphModule) -> None:
    behind(next(iter(gm.graph.nodes)), F.relu)


@breach(Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED, code="ir-call", text="positional arguments more")
def an_attribute_as_positional_argument(gm: fx.GraphModule) -> None:
    node = first(gm, Q.conv2d)
    node.args, node.kwargs = (*node.args, (1, 1)), {k: v for k, v in node.kwargs.items() if k != "stride"}


@breach(Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED, code="ir-call", text="which the table has as an op")
def a_module_that_is_an_op(gm: fx.GraphModule) -> None:
    gm.add_module("plain", nn.ReLU().eval())
    x = next(iter(gm.graph.nodes))
    with gm.graph.inserting_after(x):
        made = gm.graph.call_module("plain", (x,))
    made.meta.update({VALUE: x.meta[VALUE], QUANT: Quant(reason="a float op")})


@breach(Stage.TRACED, Stage.FUSED, Stage.QUANTIZED, Stage.LOWERED, code="ir-observer", text="observers are gone")
def an_observer_at_another_stage(gm: fx.GraphModule) -> None:
    gm.add_module("observers", nn.Module())
    gm.observers.add_module("x", nn.Identity().eval())
    x = next(iter(gm.graph.nodes))
    with gm.graph.inserting_after(x):
        gm.graph.call_module("observers.x", (x,)).meta[VALUE] = x.meta[VALUE]


# ---- decisions and qparams


@breach(Stage.TRACED, Stage.FUSED, code="ir-decision", text="before anything was")
def int8_too_early(gm: fx.GraphModule) -> None:
    note(a_call(gm), int8=True)


@breach(Stage.TRACED, Stage.FUSED, code="ir-qparams", text="before anything was observed")
def qparams_too_early(gm: fx.GraphModule) -> None:
    note(a_call(gm), qparams=P)


@breach(Stage.OBSERVED, Stage.QUANTIZED, code="ir-decision", text="neither quantized nor said to be float")
def nothing_decided(gm: fx.GraphModule) -> None:
    del first(gm, torch.cumsum).meta[QUANT]


@breach(Stage.OBSERVED, Stage.QUANTIZED, code="ir-decision", text="int8 and float")
def int8_and_float(gm: fx.GraphModule) -> None:
    note(a_call(gm), reason="no kernel")


@breach(Stage.OBSERVED, Stage.QUANTIZED, code="ir-decision", text="int8 and int8 dynamic")
def int8_and_a_mode(gm: fx.GraphModule) -> None:
    note(first(gm, Q.conv2d), mode=Mode.DYNAMIC)


@breach(Stage.OBSERVED, Stage.QUANTIZED, code="ir-decision", text="hands out floats, but is not int8")
def floats_out_of_a_float_op(gm: fx.GraphModule) -> None:
    note(first(gm, torch.cumsum), float_output=True)


@breach(Stage.OBSERVED, Stage.QUANTIZED, code="ir-mode", text="and no weight")
def a_mode_without_a_weight(gm: fx.GraphModule) -> None:
    note(a_call(gm), int8=False, mode=Mode.WEIGHT_ONLY, qparams=None)


@breach(Stage.OBSERVED, Stage.QUANTIZED, Stage.LOWERED, code="ir-qparams", text="finite and positive")
def a_scale_of_zero(gm: fx.GraphModule) -> None:
    note(next(iter(gm.graph.nodes)), qparams=replace(P, scale=0.0))


@breach(Stage.OBSERVED, Stage.QUANTIZED, Stage.LOWERED, code="ir-qparams", text="finite and positive")
def a_scale_that_is_no_number(gm: fx.GraphModule) -> None:
    note(next(iter(gm.graph.nodes)), qparams=replace(P, scale=float("nan")))


@breach(Stage.OBSERVED, Stage.QUANTIZED, Stage.LOWERED, code="ir-qparams", text="must lie in 0..255")
def a_zero_point_outside_the_range(gm: fx.GraphModule) -> None:
    note(next(iter(gm.graph.nodes)), qparams=replace(P, zero_point=300))


@breach(Stage.OBSERVED, Stage.QUANTIZED, Stage.LOWERED, code="ir-qparams", text="has the range 0..300")
def a_range_outside_the_dtype(gm: fx.GraphModule) -> None:
    note(next(iter(gm.graph.nodes)), qparams=replace(P, quant_max=300))


@breach(Stage.OBSERVED, Stage.QUANTIZED, Stage.LOWERED, code="ir-qparams", text="per channel")
def an_activation_per_channel(gm: fx.GraphModule) -> None:
    note(next(iter(gm.graph.nodes)), qparams=replace(P, scale=(0.5, 0.5), zero_point=(0, 0), channel_axis=1))


@breach(Stage.QUANTIZED, code="ir-qparams", text="activations have uint8")
def signed_activations(gm: fx.GraphModule) -> None:
    note(next(iter(gm.graph.nodes)), qparams=QParams(0.5, 3, -128, 127, torch.int8))


@breach(Stage.QUANTIZED, code="ir-qparams", text="is int8 and has no qparams")
def an_int8_op_without_qparams(gm: fx.GraphModule) -> None:
    note(first(gm, Q.conv2d), qparams=None)


@breach(Stage.QUANTIZED, code="ir-qparams", text="hands out floats, and has qparams")
def floats_with_qparams(gm: fx.GraphModule) -> None:
    note(first(gm, Q.conv2d), float_output=True)


# ---- observers


@breach(Stage.OBSERVED, code="ir-observer", text="watches two values")
def an_observer_at_two_places(gm: fx.GraphModule) -> None:
    one, two = [n for n in gm.graph.nodes if n.op == "call_module"][:2]
    two.target = one.target


@breach(Stage.OBSERVED, code="ir-observer", text="watches nothing")
def an_observer_without_a_value(gm: fx.GraphModule) -> None:
    gm.observers.add_module("more", nn.Identity())


@breach(Stage.OBSERVED, code="ir-observer", text="watch values of one group")
def two_observers_of_a_group(gm: fx.GraphModule) -> None:
    one, two = [n for n in gm.graph.nodes if n.op == "call_module"][:2]
    note(two.args[0], group=quant_of(one.args[0]).group)  # type: ignore[arg-type]
