"""Convolutions and linears: int8 weights with a scale a channel, int32 biases on the scale of the products.

y = clip(conv(x, w) + b): with x = s_x (q_x - z_x) and w = s_w q_w, the bias is held as round(b / (s_x s_w)) on the scale s_x s_w.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import torch
from torch import Tensor

from qcompiler.export.onnx_qdq.forms.pads import padded
from qcompiler.export.onnx_qdq.graph import Graph
from qcompiler.export.onnx_qdq.refusals import NoForm
from qcompiler.export.onnx_qdq.site import Form, Operand, Site
from qcompiler.ops.reference import per_axis
from qcompiler.stages.arguments import Weight

LARGEST = 2**30  # of a bias in steps: half of what int32 holds, so that sums have room


def weight_value(graph: Graph, weight: Weight) -> ir.Value:
    """DequantizeLinear of the integers, which stay integers in the file."""
    codes = graph.parameter(weight.name, weight.codes)
    if weight.zero_point.is_floating_point():
        raise NoForm("the zero points of its weight are no integers")
    scale, zero = weight.scale.float(), weight.zero_point.to(weight.codes.dtype)
    if weight.axis is None:
        return graph.call("DequantizeLinear", codes, graph.constant(scale.reshape(())), graph.constant(zero.reshape(())))
    named = (graph.parameter(f"{weight.name}_scale", scale), graph.parameter(f"{weight.name}_zero_point", zero))
    return graph.call("DequantizeLinear", codes, *named, axis=weight.axis)


def weight_sizes(weight: Weight | Operand) -> list[int]:
    """All sizes of a weight."""
    return list(weight.shape) if isinstance(weight, Weight) else weight.fixed(*range(weight.rank))


def weight_of(site: Site) -> Weight | Operand:
    given = site.get("weight")
    return given if isinstance(given, Weight) else site.tensor("weight")


def with_bias(site: Site, groups: int = 1) -> tuple[ir.Value, ir.Value | None]:
    """The weight and the bias of a convolution or a linear. Where both operands are integers, so is the bias."""
    weight, bias, given = weight_of(site), site.optional("bias"), site.x.qparams
    if not isinstance(weight, Weight) or bias is None or given is None or bias.value.const_value is None:
        made = weight_value(site.graph, weight) if isinstance(weight, Weight) else weight.value
        return made, None if bias is None else bias.value
    assert isinstance(given.scale, float)
    values = torch.from_numpy(bias.value.const_value.numpy())
    held = _room_for(weight, values, given.scale, groups)
    steps = _steps(held, given.scale, groups)
    codes = torch.round(values.double() / steps).to(torch.int32)
    name = bias.value.name or "bias"
    scale = steps.float() if steps.numel() > 1 else steps.float().reshape(())
    zero = torch.zeros(scale.shape, dtype=torch.int32)
    integers = site.graph.parameter(f"{name}_int32", codes)
    made = site.call("DequantizeLinear", integers, site.constant(scale), site.constant(zero), axis=0)
    return weight_value(site.graph, held), made


def _steps(weight: Weight, x_scale: float, groups: int) -> Tensor:
    """What one step of the sums is worth, by channel of the result."""
    transposed = weight.axis == 1  # its channels of the result lie along 1, those of one group
    return x_scale * (weight.scale.repeat(groups) if transposed else weight.scale)


def _room_for(weight: Weight, bias: Tensor, x_scale: float, groups: int) -> Weight:
    """The weight, on larger scales where a bias is more than int32 holds: next to such a bias that costs less than float32's last bit."""
    if weight.axis is None or weight.axis == 1:
        over = float((bias.abs().double() / _steps(weight, x_scale, groups)).max()) if bias.numel() else 0.0
        if over > LARGEST:
            raise NoForm(f"its bias is {over:.2g} steps of its weight's scale, more than int32 holds")
        return weight
    scale = torch.maximum(weight.scale, bias.abs().double() / (x_scale * LARGEST))
    if torch.equal(scale, weight.scale):
        return weight
    ratio = per_axis(weight.scale / scale, weight.axis, weight.codes.dim())
    zero = per_axis(weight.zero_point, weight.axis, weight.codes.dim())
    codes = torch.round((weight.codes - zero) * ratio).to(torch.int8)
    moved = scale != weight.scale
    kept = torch.where(per_axis(moved, weight.axis, codes.dim()), codes, weight.codes)
    return replace(weight, codes=kept, scale=scale, zero_point=torch.where(moved, 0, weight.zero_point))


def _each(site: Site, name: str, dims: int) -> list[int]:
    found = site.integers(name)
    return found * dims if len(found) == 1 else found


def _pads(site: Site, dims: int, kernel: list[int]) -> list[int]:
    """Before and behind each axis; torch's "same" has the odd one behind."""
    padding = site.get("padding")
    if isinstance(padding, str):
        whole = [d * (k - 1) if padding == "same" else 0 for d, k in zip(_each(site, "dilation", dims), kernel)]
        return [total // 2 for total in whole] + [total - total // 2 for total in whole]
    return _each(site, "padding", dims) * 2


def _batched(site: Site, dims: int) -> Operand:
    if site.x.rank != dims + 2:
        raise NoForm("its input has no batch dimension")
    return site.x


def conv(dims: int) -> Form:
    def form(site: Site) -> ir.Value:
        x, kernel = _batched(site, dims), weight_sizes(weight_of(site))[2:]
        value, pads = x.value, _pads(site, dims, kernel)
        if site.get("padding_mode") not in (None, "zeros"):
            sides = [p for size in reversed(pads[:dims]) for p in (size, size)]
            value, pads = site.again(padded(site, x, sides, site.text("padding_mode"), 0.0), x.qparams), [0] * (2 * dims)
        groups = int(site.number("groups"))
        weight, bias = with_bias(site)
        return site.call("Conv", value, weight, bias, kernel_shape=kernel, strides=_each(site, "stride", dims), pads=pads,
                         dilations=_each(site, "dilation", dims), group=groups)  # fmt: skip

    return form


def conv_transpose(dims: int) -> Form:
    def form(site: Site) -> ir.Value:
        x, groups = _batched(site, dims), int(site.number("groups"))
        weight, bias = with_bias(site, groups)
        return site.call("ConvTranspose", x.value, weight, bias, kernel_shape=weight_sizes(weight_of(site))[2:],
                         strides=_each(site, "stride", dims), pads=_each(site, "padding", dims) * 2, group=groups,
                         dilations=_each(site, "dilation", dims), output_padding=_each(site, "output_padding", dims))  # fmt: skip

    return form


def conv2d_add(site: Site) -> ir.Value:
    return site.call("Add", conv(2)(site), site.operand(site.tensor("other"), torch.float32))


def linear(site: Site) -> ir.Value:
    """Rows times a weight: a Gemm, which takes the bias in integers; more dimensions than two are made rows and back."""
    x, held = site.x, site.get("weight")
    if x.at_run_time and isinstance(held, Weight) and not held.zero_point.any():
        return _dynamic_linear(site, held)
    weight, bias = with_bias(site)
    inputs = weight_sizes(weight_of(site))[1]
    rows = x.value
    if x.rank != 2:
        rows = site.again(site.extents.reshaped(rows, None, (-1, inputs)), x.qparams)
    made = site.call("Gemm", rows, weight, bias, transB=1)
    if x.rank == 2:
        return made
    return site.extents.reshaped(site.again(made, site.output), None, site.shape)


def _dynamic_linear(site: Site, weight: Weight) -> ir.Value:
    """The input is rounded to 255 steps of its own range; the sums are integers, and become floats once."""
    codes, scale, zero = site.graph.add("DynamicQuantizeLinear", site.x.value, outputs=3)
    held = site.graph.parameter(weight.name, weight.codes.t().contiguous())
    sums = site.graph.cast(site.call("MatMulInteger", codes, held, zero), torch.float32)
    steps = weight.scale.float() if weight.scale.numel() > 1 else weight.scale.float().reshape(())
    made = site.call("Mul", sums, site.call("Mul", scale, site.constant(steps)))
    bias = site.optional("bias")
    return made if bias is None else site.call("Add", made, bias.value)


def linear_then(op: str) -> Form:
    def form(site: Site) -> ir.Value:
        slope = {"alpha": float(site.number("negative_slope"))} if op == "LeakyRelu" else {}
        return site.call(op, linear(replace(site, output=None)), **slope)

    return form


FORMS: dict[str, Form] = {
    **{f"conv{dims}d": conv(dims) for dims in (1, 2, 3)},
    **{f"conv_transpose{dims}d": conv_transpose(dims) for dims in (1, 2, 3)},
    "conv2d_add": conv2d_add, "linear": linear, "linear_leaky_relu": linear_then("LeakyRelu"), "linear_tanh": linear_then("Tanh"),
}  # fmt: skip
