"""linear and matmul."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qcompiler.backends.torch.kernels.conv import axis_of, bias_of, refuse_weight, tag
from qcompiler.backends.torch.runtime import floats, packs
from qcompiler.backends.torch.runtime import functions as runtime
from qcompiler.backends.torch.site import ENGINES, VNNI, Emit, Kernel, Operand, Site, Weight, finish, needs_relu

OPS = torch.ops.quantized
QPARAMS = (torch.ops.aten.q_scale.default, torch.ops.aten.q_zero_point.default)


def saturates(site: Site) -> bool:
    """Without VNNI, x86's kernels add two products in 16 bits."""
    return site.engine != "qnnpack" and site.isa not in VNNI


def refuse_linear(site: Site) -> str | None:
    if not isinstance(site.args[0], Operand) or not isinstance(site.args[1], Weight):
        return "its weight is computed, not a constant"
    return refuse_weight(site.args[1], site, axis=0)


def packed(site: Site, emit: Emit) -> tuple[Any, fx.Node]:
    """The input with at least two dimensions, and the pack (once)."""
    x, weight = site.args[0], site.args[1]
    rows = emit.call(torch.ops.aten.unsqueeze.default, x, 0) if site.rank == 1 else x
    if site.engine == "qnnpack":  # its kernel takes any number of features and computes something; unflatten refuses others
        rows = emit.call(torch.ops.aten.unflatten.int, rows, -1, [weight.shape[1]])
    names = (weight.node, weight.scale, weight.zero_point, bias_of(site))
    return rows, emit.call(packs.prepack_linear, *names, axis_of(weight), tag(site))


def like_input(site: Site, emit: Emit, result: fx.Node, source: object) -> fx.Node:
    """The result with the input's leading dimensions: none for a vector; onednn loses them where a batch is empty."""
    if site.rank == 1:
        return emit.call(torch.ops.aten.squeeze.dim, result, 0)
    return emit.call(runtime.leading_of, result, source) if site.engine == "onednn" and site.rank != 2 else result


def emit_linear(site: Site, emit: Emit) -> fx.Node:
    """prepack (once) and quantized::linear; any number of leading dimensions."""
    rows, pack = packed(site, emit)
    with_relu = needs_relu(site)
    kernel = OPS.linear_relu.default if with_relu else OPS.linear.default
    result = emit.call(kernel, rows, pack, site.scale, site.zero_point)
    return finish(site, emit, like_input(site, emit, result, site.args[0]), relu_done=with_relu)


def emit_linear_to_float(site: Site, emit: Emit) -> fx.Node:
    """int8 product, float result: the op takes a float input and quantizes it, which gives back the codes it was made from."""
    x = site.args[0]
    rows, pack = packed(site, emit)
    real = emit.call(torch.ops.aten.dequantize.self, rows)
    known = (x.qparams.scale, x.qparams.zero_point) if x.qparams else [emit.call(f, x) for f in QPARAMS]
    result = emit.call(OPS.linear_with_input_q_dq_qweight_dq_output_fp32.default, real, *known, pack)
    result = like_input(site, emit, result, site.args[0])
    low, high = site.get("bounds") or (None, None)
    return result if low is None and high is None else emit.call(torch.ops.aten.clamp.default, result, low, high)


def refuse_matmul(site: Site) -> str | None:
    tensors = all(isinstance(a, (Operand, fx.Node)) for a in site.args[:2]) and isinstance(site.args[0], Operand)
    return None if tensors else "an operand is not a tensor"


def emit_matmul(site: Site, emit: Emit) -> fx.Node:
    """quantized::matmul works in float too, and refuses broadcasting: so one function for all shapes."""
    return finish(site, emit, emit.call(floats.matmul_float, site.args[0], site.args[1], site.scale, site.zero_point))


KERNELS = (
    Kernel("linear", ENGINES, emit_linear, refuse_linear, saturates),
    Kernel("matmul", ENGINES, emit_matmul, refuse_matmul, note="float arithmetic, as torch's own int8 matmul"),
)

TO_FLOAT = (
    Kernel("linear", ("x86", "fbgemm"), emit_linear_to_float, refuse_linear, saturates, note="both pack with fbgemm; others lack it"),
)
