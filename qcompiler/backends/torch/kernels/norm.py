"""batch_norm, layer_norm, rms_norm, group_norm, instance_norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qcompiler.backends.torch.runtime import fit, floats
from qcompiler.backends.torch.runtime import functions as runtime
from qcompiler.backends.torch.site import ENGINES, Emit, Kernel, Operand, Site, finish, needs_relu

OPS = torch.ops.quantized


def parameter(site: Site, position: int, name: str) -> fx.Node | None:
    value = site.args[position] if len(site.args) > position else site.get(name)
    return value if isinstance(value, fx.Node) else None


def refuse_input(site: Site) -> str | None:
    return None if isinstance(site.args[0], Operand) else "its input is not quantized"


def _statistics(site: Site) -> tuple[Any, ...]:
    names = ("mean", "var", "weight", "bias")
    return tuple(parameter(site, i, name) for i, name in enumerate(names, start=1))


def refuse_batch_norm(site: Site) -> str | None:
    """quantized::batch_norm wants all four parameters and a known rank."""
    missing = any(p is None for p in _statistics(site))
    known = site.rank in (3, 4, 5)
    return refuse_input(site) or ("without weight and bias" if missing else None) or (None if known else "its rank is not 3, 4 or 5")


def emit_batch_norm(site: Site, emit: Emit) -> fx.Node:
    """(weight, bias, mean, var) is the kernel's order."""
    mean, var, weight, bias = _statistics(site)
    kernels: dict[int | None, tuple[Any, Any]] = {
        3: (OPS.batch_norm1d.default, OPS.batch_norm1d_relu.default),
        4: (OPS.batch_norm2d.default, OPS.batch_norm2d_relu.default),
        5: (OPS.batch_norm3d.default, OPS.batch_norm3d_relu.default),
    }
    with_relu = needs_relu(site)
    target = kernels[site.rank][with_relu]
    result = emit.call(target, site.args[0], weight, bias, mean, var, float(site.get("eps", 1e-5)), site.scale, site.zero_point)
    return finish(site, emit, result, relu_done=with_relu)


def emit_batch_norm_float(site: Site, emit: Emit) -> fx.Node:
    result = emit.call(floats.batch_norm_float, site.args[0], *_statistics(site), float(site.get("eps", 1e-5)), site.scale, site.zero_point)
    return finish(site, emit, result)


def _affine(site: Site) -> tuple[object, ...]:
    return parameter(site, 1, "weight"), parameter(site, 2, "bias"), float(site.get("eps", 1e-5)), site.scale, site.zero_point


def refuse_layer_norm(site: Site) -> str | None:
    return refuse_input(site) or (None if site.get("normalized_shape") is not None else "its normalized_shape is not given")


def emit_layer_norm(site: Site, emit: Emit) -> fx.Node:
    """Three times as fast as quantized::layer_norm, and as exact."""
    shape = site.get("normalized_shape")
    sizes = [shape] if isinstance(shape, (int, fx.Node)) else list(shape)
    return finish(site, emit, emit.call(floats.layer_norm_float, site.args[0], sizes, *_affine(site)))


def emit_rms_norm(site: Site, emit: Emit) -> fx.Node:
    shape, eps = site.get("normalized_shape"), site.get("eps")
    sizes = [shape] if isinstance(shape, (int, fx.Node)) else list(shape)
    settings = (sizes, parameter(site, 1, "weight"), None if eps is None else float(eps))
    return finish(site, emit, emit.call(floats.rms_norm_float, site.args[0], *settings, site.scale, site.zero_point))


def refuse_group_norm(site: Site) -> str | None:
    return refuse_input(site) or (None if (site.rank or 0) >= 3 else "the int8 kernel wants at least 3 dimensions")


def emit_group_norm(site: Site, emit: Emit) -> fx.Node:
    return finish(site, emit, emit.call(fit.group_norm, emit.call(fit.settled, site.args[0]), site.get("num_groups", 1), *_affine(site)))


def emit_group_norm_float(site: Site, emit: Emit) -> fx.Node:
    return finish(site, emit, emit.call(floats.group_norm_float, site.args[0], site.get("num_groups", 1), *_affine(site)))


def emit_instance_norm(site: Site, emit: Emit) -> fx.Node:
    return finish(site, emit, emit.call(runtime.instance_norm, emit.call(fit.settled, site.args[0]), *_affine(site)))


KERNELS = (
    Kernel("batch_norm", ENGINES, emit_batch_norm, refuse_batch_norm),
    Kernel("batch_norm", ENGINES, emit_batch_norm_float, refuse_input, note="float arithmetic"),
    Kernel("layer_norm", ENGINES, emit_layer_norm, refuse_layer_norm, note="float arithmetic"),
    Kernel("rms_norm", ENGINES, emit_rms_norm, refuse_layer_norm, note="float arithmetic"),
    Kernel("group_norm", ENGINES, emit_group_norm, refuse_group_norm),
    Kernel("group_norm", ENGINES, emit_group_norm_float, refuse_input, note="float arithmetic"),
    Kernel("instance_norm", ENGINES, emit_instance_norm, refuse_input),
)
