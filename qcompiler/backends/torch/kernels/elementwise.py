"""Functions of single values, and softmax.

Where torch has an int8 kernel, arithmetic on floats and a table of 256 would do as well: speed.json says which is the fastest (above
65,536 values on AVX-512 native kernels and floats, a table for mish, on AVX2 for softplus, too). Such a table is computed at each call
and leaves nothing in the state_dict, which must not depend on the example's size. A function without a kernel of its own is a table
that the module holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from qcompiler.backends.torch.runtime import floats, packs
from qcompiler.backends.torch.runtime import functions as runtime
from qcompiler.backends.torch.site import ENGINES, Emit, Kernel, Operand, Site, Weight, clamp, finish

OPS = torch.ops.quantized
X86 = ("x86", "fbgemm", "onednn")  # qnnpack's hardswish and hardsigmoid end the process (SIGFPE) on an empty batch
FLOAT: dict[str, tuple[Any, tuple[tuple[str, Any], ...]]] = {  # op: (function, its attributes with their defaults)
    "sigmoid": (floats.sigmoid_float, ()),
    "hardsigmoid": (floats.hardsigmoid_float, ()),
    "tanh": (floats.tanh_float, ()),
    "silu": (floats.silu_float, ()),
    "mish": (floats.mish_float, ()),
    "hardswish": (floats.hardswish_float, ()),
    "gelu": (floats.gelu_float, (("approximate", "none"),)),
    "softplus": (floats.softplus_float, (("beta", 1.0), ("threshold", 20.0))),
    "leaky_relu": (floats.leaky_relu_float, (("negative_slope", 0.01),)),
    "elu": (floats.elu_float, (("alpha", 1.0),)),
    "celu": (floats.celu_float, (("alpha", 1.0),)),
}


def refuse_input(site: Site) -> str | None:
    return None if isinstance(site.args[0], Operand) else "its input is not quantized"


def _in_float(site: Site, emit: Emit, x: object) -> fx.Node:
    function, defaults = FLOAT[site.op.name]
    attributes = [type(default)(site.get(name, default)) for name, default in defaults]
    return emit.call(function, x, *attributes, site.scale, site.zero_point)


def emit_float(site: Site, emit: Emit) -> fx.Node:
    return finish(site, emit, _in_float(site, emit, site.args[0]))


def emit_float_of_codes(site: Site, emit: Emit) -> fx.Node:
    """Float arithmetic on the 256 codes alone, then a look-up."""
    table = _in_float(site, emit, emit.call(runtime.all_codes, site.args[0]))
    return finish(site, emit, emit.call(runtime.lookup_values, site.args[0], table))


def _native(target: Any) -> Callable[[Site, Emit], fx.Node]:
    def emit_native(site: Site, emit: Emit) -> fx.Node:
        return finish(site, emit, emit.call(target, site.args[0], site.scale, site.zero_point))

    return emit_native


def emit_leaky(site: Site, emit: Emit) -> fx.Node:
    slope = float(site.get("negative_slope", 0.01))
    return finish(site, emit, emit.call(OPS.leaky_relu.default, site.args[0], slope, False, site.scale, site.zero_point))


def refuse_sigmoid(site: Site) -> str | None:
    """qnnpack makes no other operator."""
    fixed = (site.scale, site.zero_point) == (1 / 256, 0)
    return refuse_input(site) or ("qnnpack's output scale is 1/256" if site.engine == "qnnpack" and not fixed else None)


def refuse_hardsigmoid(site: Site) -> str | None:
    """The kernel's result always has scale 1/256, zero point 0."""
    return refuse_input(site) or (None if (site.scale, site.zero_point) == (1 / 256, 0) else "its output scale is not 1/256")


def emit_hardsigmoid(site: Site, emit: Emit) -> fx.Node:
    return finish(site, emit, emit.call(torch.ops.aten.hardsigmoid.default, site.args[0]))


def emit_relu(site: Site, emit: Emit) -> fx.Node:
    return emit.call(torch.ops.aten.relu.default, site.args[0])


def emit_clamp(site: Site, emit: Emit) -> fx.Node:
    """quint8 clamp wants both limits: the ends of the range stand for an open side."""
    low, high = site.get("min"), site.get("max")
    if site.args[0].qparams is None and (low is None or high is None or site.engine == "qnnpack"):
        return emit.call(floats.clamp_own, site.args[0], *(None if v is None else float(v) for v in (low, high)))
    if site.args[0].qparams is None:
        return emit.call(torch.ops.aten.clamp.default, site.args[0], float(low), float(high))
    ends = site.scale * (0 - site.zero_point), site.scale * (255 - site.zero_point)
    limits = [float(ends[0] if low is None else max(low, ends[0])), float(ends[1] if high is None else min(high, ends[1]))]
    return clamp(site.engine, emit, site.args[0], site.output, limits[0], limits[1])


def refuse_clamp(site: Site) -> str | None:
    numbers = all(v is None or isinstance(v, (int, float)) for v in (site.get("min"), site.get("max")))
    return refuse_input(site) or (None if numbers else "a limit is a tensor")


def refuse_prelu(site: Site) -> str | None:
    weight = site.args[1] if len(site.args) > 1 else None
    return refuse_input(site) or (None if isinstance(weight, (fx.Node, Weight)) else "its slope is quantized as an activation")


def emit_prelu(site: Site, emit: Emit) -> fx.Node:
    """Slopes stay float, or int8 per tensor or per channel; torch's quantized::prelu is not used."""
    weight = site.args[1]
    if isinstance(weight, Weight):
        axis = -1 if weight.axis is None else weight.axis
        weight = emit.call(packs.float_weight, weight.node, weight.scale, weight.zero_point, axis)
    return finish(site, emit, emit.call(floats.prelu_float, site.args[0], weight, site.scale, site.zero_point))


def refuse_softmax(site: Site) -> str | None:
    return refuse_input(site) or (None if isinstance(site.get("dim"), int | None) else "its dimension is computed")


def emit_softmax(site: Site, emit: Emit) -> fx.Node:
    if site.get("dim") is None:
        return finish(site, emit, emit.call(floats.softmax_implicit, site.args[0], site.scale, site.zero_point))
    return finish(site, emit, emit.call(floats.softmax_float, site.args[0], site.get("dim"), site.scale, site.zero_point))


def refuse_function(site: Site) -> str | None:
    plain = not any(isinstance(v, (fx.Node, Operand, Weight)) for v in (*site.args[1:], *site.attributes.values()))
    return refuse_input(site) or (None if site.op.elementwise and plain else "not a function of single values with constant settings")


def refuse_lookup(site: Site) -> str | None:
    return refuse_function(site) or (None if site.args[0].qparams else "the scale of its input, which a table depends on, is not known")


def refuse_three_calls(site: Site) -> str | None:
    known = isinstance(site.args[0], Operand) and site.args[0].qparams is not None
    return refuse_function(site) or ("a table does it in one call" if known else None)


def lookup_table(site: Site) -> torch.Tensor:
    """The output code of each of the 256 input codes, computed by the op itself in float64."""
    x: Operand = site.args[0]
    assert x.qparams is not None and isinstance(x.qparams.scale, float) and isinstance(x.qparams.zero_point, int)
    values = (torch.arange(256, dtype=torch.float64) - x.qparams.zero_point) * x.qparams.scale
    result = torch.nan_to_num(site.op.fn(values, *site.args[1:], **site.plain()).double(), nan=0.0)
    low, high = site.get("bounds") or (None, None)
    result = result if low is None and high is None else result.clamp(low, high)
    codes = torch.round(result / site.scale) + site.zero_point
    return codes.clamp(site.output.quant_min, site.output.quant_max).to(torch.uint8)


def emit_lookup(site: Site, emit: Emit) -> fx.Node:
    """Any function of single values: exact, by a table held in a buffer."""
    table = emit.constant(f"{site.node.name}_table", lookup_table(site))
    return emit.call(runtime.lookup, site.args[0], table, site.scale, site.zero_point)


def emit_function(site: Site, emit: Emit) -> fx.Node:
    """dequantize - the op itself - quantize, as three calls: where the input's scale, which a table needs, is not known."""
    real = emit.call(torch.ops.aten.dequantize.self, site.args[0])
    result = emit.call(site.op.fn, real, *site.args[1:], **site.plain())
    return finish(site, emit, emit.call(torch.quantize_per_tensor, result, site.scale, site.zero_point, torch.quint8))


def table_kernels(name: str) -> tuple[Kernel, ...]:
    """The entries for an elementwise op that has no other."""
    table = Kernel(name, ENGINES, emit_lookup, refuse_lookup, note="table of 256")
    return table, Kernel(name, ENGINES, emit_function, refuse_three_calls, note="float arithmetic")


KERNELS = (
    Kernel("hardswish", X86, _native(OPS.hardswish.default), refuse_input),
    Kernel("sigmoid", ENGINES, _native(OPS.sigmoid.default), refuse_sigmoid),
    Kernel("leaky_relu", ENGINES, emit_leaky, refuse_input),
    Kernel("hardsigmoid", X86, emit_hardsigmoid, refuse_hardsigmoid),
    *(Kernel(op, ENGINES, emit_float, refuse_input, note="float arithmetic") for op in FLOAT),
    *(Kernel(op, ENGINES, emit_float_of_codes, refuse_input, note="table of 256") for op in FLOAT),
    Kernel("prelu", ENGINES, emit_prelu, refuse_prelu, note="float arithmetic; torch's int8 PReLU is wrong"),
    Kernel("softmax", ENGINES, emit_softmax, refuse_softmax, note="float arithmetic"),
    Kernel("relu", ENGINES, emit_relu, refuse_input),
    Kernel("clamp", ENGINES, emit_clamp, refuse_clamp),
)
