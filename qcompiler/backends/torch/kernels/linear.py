"""linear and matmul.

oneDNN without vectors of 512 bits multiplies few rows slowly, and convolves few pixels fast. One thread, processor time, AMD EPYC (Zen 5)
limited to AVX2, microseconds of linear, of a convolution with a window of one, and of float: 1024 to 1024 features, one row 158, 34, 111;
4 rows 151, 68, 190; 16 rows 335, 183, 600; 768 to 3072, one row 387, 61, 125. From 64 rows on it is 0.8 to 1 of linear; 256 to 256 are
equal. With VNNI both are alike.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from qcompiler.backends.torch.kernels.conv import axis_of, bias_of, refuse_weight, tag
from qcompiler.backends.torch.runtime import floats, packs
from qcompiler.backends.torch.runtime import functions as runtime
from qcompiler.backends.torch.site import ENGINES, VNNI, WIDE_VECTORS, Emit, Kernel, Operand, Site, Weight, finish, needs_relu

OPS = torch.ops.quantized
FEW_ROWS, MANY_WEIGHTS = 16, 2**16  # where oneDNN's convolution is faster than its product
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


def refuse_as_conv(site: Site) -> str | None:
    """Other calls than the example's may have more rows: then the kernel is about as fast."""
    shape = site.shape(0)
    if site.isa in WIDE_VECTORS or shape is None or math.prod(shape[:-1]) > FEW_ROWS:
        return refuse_linear(site) or "its rows are many, or its vectors wide: the product is as fast"
    few = isinstance(site.args[1], Weight) and math.prod(site.args[1].shape) < MANY_WEIGHTS
    return refuse_linear(site) or ("its weights are few: the product is as fast" if few else None)


def emit_as_conv(site: Site, emit: Emit) -> fx.Node:
    """The rows as pixels of a convolution with a window of one."""
    weight, with_relu = site.args[1], needs_relu(site)
    names = (weight.node, weight.scale, weight.zero_point, bias_of(site))
    pack = emit.call(packs.prepack_linear_as_conv2d, *names, axis_of(weight), tag(site))
    pixels = emit.call(runtime.as_pixels, site.args[0])
    kernel = OPS.conv2d_relu.new if with_relu else OPS.conv2d.new
    result = emit.call(kernel, pixels, pack, site.scale, site.zero_point)
    return finish(site, emit, emit.call(runtime.as_rows, result, site.args[0]), relu_done=with_relu)


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
    Kernel("linear", ("onednn",), emit_as_conv, refuse_as_conv, saturates),
    Kernel("linear", ENGINES, emit_linear, refuse_linear, saturates),
    Kernel("matmul", ENGINES, emit_matmul, refuse_matmul, note="float arithmetic, as torch's own int8 matmul"),
)

TO_FLOAT = (
    Kernel("linear", ("x86", "fbgemm"), emit_linear_to_float, refuse_linear, saturates, note="both pack with fbgemm; others lack it"),
)
