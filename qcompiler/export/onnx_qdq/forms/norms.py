"""Normalizations."""

from __future__ import annotations

import onnx_ir as ir
import torch

from qcompiler.export.onnx_qdq.refusals import NoForm
from qcompiler.export.onnx_qdq.site import Form, Operand, Site


def _along_channels(site: Site, tensor: Operand | None) -> ir.Value | None:
    """A vector of channels so that it broadcasts along dimension 1."""
    if tensor is None:
        return None
    return site.extents.reshaped(tensor.value, None, (*tensor.sizes, *[1] * (site.x.rank - 2)))


def _affine(site: Site, value: ir.Value, weight: ir.Value | None, bias: ir.Value | None) -> ir.Value:
    value = value if weight is None else site.call("Mul", value, weight)
    return value if bias is None else site.call("Add", value, bias)


def batch_norm(site: Site) -> ir.Value:
    if site.flag("training"):
        raise NoForm("it computes statistics from each batch")
    mean, var = site.tensor("mean"), site.tensor("var")
    channels = mean.fixed(0)[0]
    ones, zeros = site.constant(torch.ones(channels)), site.constant(torch.zeros(channels))
    weight, bias = site.optional("weight"), site.optional("bias")
    parts = (ones if weight is None else weight.value, zeros if bias is None else bias.value, mean.value, var.value)
    return site.call("BatchNormalization", site.x.value, *parts, epsilon=float(site.number("eps")))


def layer_norm(site: Site) -> ir.Value:
    sizes = site.integers("normalized_shape")
    weight, bias = site.optional("weight"), site.optional("bias")
    ones = site.constant(torch.ones(sizes)) if weight is None else weight.value
    return site.call("LayerNormalization", site.x.value, ones, None if bias is None else bias.value, axis=-len(sizes),
                     epsilon=float(site.number("eps")))  # fmt: skip


def rms_norm(site: Site) -> ir.Value:
    """x / sqrt(mean(x^2) + eps) * weight."""
    x, eps = site.x.value, site.get("eps")
    axes = site.ints(*range(-len(site.integers("normalized_shape")), 0))
    power = site.call("ReduceMean", site.call("Mul", x, x), axes, keepdims=1)
    least = torch.finfo(site.dtype).eps if eps is None else float(site.number("eps"))
    root = site.call("Sqrt", site.call("Add", power, site.constant(least, site.dtype)))
    weight = site.optional("weight")
    return _affine(site, site.call("Div", x, root), None if weight is None else weight.value, None)


def group_norm(site: Site) -> ir.Value:
    """Each group as one channel of an instance norm, which has no limit to what it averages over."""
    x, groups = site.x, int(site.number("num_groups"))
    rows = site.call("Reshape", x.value, site.ints(0, groups, -1))
    ones, zeros = site.constant(torch.ones(groups)), site.constant(torch.zeros(groups))
    made = site.call("InstanceNormalization", rows, ones, zeros, epsilon=float(site.number("eps")))
    back = site.extents.reshaped(made, None, x.sizes)
    return _affine(site, back, _along_channels(site, site.optional("weight")), _along_channels(site, site.optional("bias")))


def instance_norm(site: Site) -> ir.Value:
    channels = site.x.fixed(1)[0]
    weight, bias = site.optional("weight"), site.optional("bias")
    return site.call("InstanceNormalization", site.x.value,
                     site.constant(torch.ones(channels)) if weight is None else weight.value,
                     site.constant(torch.zeros(channels)) if bias is None else bias.value, epsilon=float(site.number("eps")))  # fmt: skip


def normalize(site: Site) -> ir.Value:
    """x / max(norm(x), eps), of the second or first kind."""
    p, axis = site.number("p"), site.x.axis(site.get("dim"))
    if p not in (1, 2):
        raise NoForm(f"a norm of p = {p} has no op")
    norm = site.call("ReduceL2" if p == 2 else "ReduceL1", site.x.value, site.ints(axis), keepdims=1)
    return site.call("Div", site.x.value, site.call("Max", norm, site.constant(float(site.number("eps")), site.dtype)))


FORMS: dict[str, Form] = {
    "batch_norm": batch_norm, "layer_norm": layer_norm, "rms_norm": rms_norm, "group_norm": group_norm, "instance_norm": instance_norm,
    "normalize": normalize,
}  # fmt: skip
