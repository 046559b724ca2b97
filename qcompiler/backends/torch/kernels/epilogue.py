"""linear and conv2d with an op behind them that needs the unrounded sums: leaky_relu, tanh, a residual.

onednn has one kernel for each. Elsewhere the sums become floats (in int8 arithmetic where the engine hands them out) and the op
runs on those: two int8 kernels would round in between, at a scale that nothing observed. onednn's conv2d_add_relu is not used: its
ReLU is wrong where the zero point is not 0 (44 quanta); saturation or a clamp of conv2d_add's result does it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx

from qcompiler.backends.torch.kernels import conv, linear
from qcompiler.backends.torch.runtime import fit, float_windows, packs
from qcompiler.backends.torch.runtime import functions as runtime
from qcompiler.backends.torch.site import ENGINES, Emit, Kernel, Operand, Site, finish, ints


def _act(site: Site, emit: Emit, real: fx.Node) -> fx.Node:
    """The activation on floats, quantized."""
    if site.op.name == "linear_tanh":
        done = emit.call(torch.tanh, real)
    else:
        done = emit.call(F.leaky_relu, real, float(site.get("negative_slope", 0.01)))
    return emit.call(torch.quantize_per_tensor, done, site.scale, site.zero_point, torch.quint8)


def emit_fused(site: Site, emit: Emit) -> fx.Node:
    rows, pack = linear.packed(site, emit)
    if site.op.name == "linear_tanh":
        result = emit.call(runtime.linear_tanh_onednn, rows, pack, site.scale, site.zero_point)
    else:
        slope = float(site.get("negative_slope", 0.01))
        result = emit.call(runtime.linear_leaky_relu_onednn, rows, pack, slope, site.scale, site.zero_point)
    return linear.like_input(site, emit, result, site.args[0])


def emit_from_sums(site: Site, emit: Emit) -> fx.Node:
    """int8 product, then the activation on its float sums."""
    return _act(site, emit, linear.emit_linear_to_float(site, emit))


def emit_from_floats(site: Site, emit: Emit) -> fx.Node:
    x, weight = site.args[0], site.args[1]
    values = emit.call(packs.float_weight, weight.node, weight.scale, weight.zero_point, conv.axis_of(weight))
    return _act(site, emit, emit.call(F.linear, emit.call(torch.ops.aten.dequantize.self, x), values, conv.bias_of(site)))


def refuse_add(site: Site) -> str | None:
    return conv.refuse_computed(site) or (None if isinstance(site.args[3], Operand) else "what it adds is not quantized")


def refuse_fused_add(site: Site) -> str | None:
    return refuse_add(site) or conv.refuse_conv(site)


def emit_add(site: Site, emit: Emit) -> fx.Node:
    source, pack, padding = conv.packed(site, emit)
    shape = site.args[1].shape
    other = conv.batched(site, emit, site.args[3], 2)
    stride = ints(site.get("stride", 1), 2)
    where = (shape[0], list(shape[2:]), stride, padding, ints(site.get("dilation", 1), 2))
    sizes = conv.sizes_of(site, conv.ConvForm(shape, {**site.attributes, "padding": padding}, conv.is_symmetric(site.args[1])))
    settings = sizes.trailing(stride)
    large = emit.call(fit.at_least, source, *settings[:2]) if sizes.checked else source
    other = emit.call(fit.with_more, other, source, *settings) if sizes.grown else other
    result = emit.call(runtime.conv2d_add_onednn, large, other, pack, *where, site.scale, site.zero_point)
    result = emit.call(fit.without_more, result, source, *settings) if sizes.grown else result
    return finish(site, emit, conv.unbatched(site, emit, result, 2))


def emit_add_float(site: Site, emit: Emit) -> fx.Node:
    x, weight, bias, other = site.args
    source, padding = conv.padded(site, emit, x, weight.shape[2:])
    values = emit.call(packs.float_weight, weight.node, weight.scale, weight.zero_point, conv.axis_of(weight))
    where = (ints(site.get("stride", 1), 2), padding, ints(site.get("dilation", 1), 2), site.get("groups", 1))
    return finish(site, emit, emit.call(float_windows.conv2d_add_float, source, values, bias, other, *where, site.scale, site.zero_point))


LINEAR = ("linear_leaky_relu", "linear_tanh")
KERNELS = (
    *(Kernel(op, ("onednn",), emit_fused, linear.refuse_linear, linear.saturates) for op in LINEAR),
    *(Kernel(op, ("x86", "fbgemm"), emit_from_sums, linear.refuse_linear, linear.saturates, note="int8 product") for op in LINEAR),
    *(Kernel(op, ENGINES, emit_from_floats, conv.refuse_computed, note="float arithmetic, int8 weights") for op in LINEAR),
    Kernel("conv2d_add", ("onednn",), emit_add, refuse_fused_add, conv.saturates),
    Kernel("conv2d_add", ENGINES, emit_add_float, refuse_add, note="float arithmetic, int8 weights"),
)
