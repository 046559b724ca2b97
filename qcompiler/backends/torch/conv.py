"""Convolutions: which taps may overflow, how weights are packed, what is refused where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from qcompiler.backends.torch import floats, groups, runtime
from qcompiler.backends.torch.depthwise import safe_weight
from qcompiler.backends.torch.phases import Phases
from qcompiler.backends.torch.site import ENGINES, VNNI, Emit, Kernel, Operand, Site, Weight, constant_of, finish, ints, needs_relu

OPS = torch.ops.quantized
CONV: dict[int, tuple[Any, Any, Any]] = {
    1: (runtime.prepack_conv1d, OPS.conv1d.default, OPS.conv1d_relu.default),
    2: (runtime.prepack_conv2d, OPS.conv2d.new, OPS.conv2d_relu.new),
    3: (runtime.prepack_conv3d, OPS.conv3d.new, OPS.conv3d_relu.new),
}


def bias_of(site: Site) -> fx.Node | None:
    bias = site.args[2] if len(site.args) > 2 else site.get("bias")
    return bias if isinstance(bias, fx.Node) else None


def tag(site: Site) -> str:
    """What a pack of this site must not share: qnnpack keeps the scales of its first call inside the pack."""
    if site.engine != "qnnpack":
        return ""
    x = site.args[0].qparams
    return f"{x and x.scale!r}/{site.scale!r}/{site.zero_point}/{needs_relu(site)}"


def axis_of(weight: Weight) -> int:
    return -1 if weight.axis is None else weight.axis


def sides_of(site: Site, kernel: tuple[int, ...]) -> list[tuple[int, int]]:
    """Padding before and after, per spatial dimension; 'same' may want one more after."""
    padding, dilation = site.get("padding", 0), ints(site.get("dilation", 1), len(kernel))
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel)]
        return [(t // 2, t - t // 2) for t in totals]
    return [(p, p) for p in ints(padding, len(kernel))]


def fbgemm_packs(engine: str, isa: str, count: int, symmetric: bool = True, output_padding: bool = False) -> bool:
    """Whether the engine packs `count` groups with fbgemm (x86 takes onednn on VNNI with up to 100 and symmetric weights)."""
    return engine == "fbgemm" or (engine == "x86" and (isa not in VNNI or count > groups.ONEDNN_GROUPS or not symmetric or output_padding))


def pairs_taps(op: str, shape: tuple[int, ...], attributes: Mapping[str, Any]) -> bool:
    """Whether fbgemm's depthwise kernel takes this convolution: it adds neighbouring taps in 16 bits.

    `shape` is the weight's (O, I/g, *kernel). Found by trying 5670 shapes with weights that overflow: none escapes.
    """
    kernel, count = shape[2:], attributes.get("groups", 1)
    if op not in ("conv2d", "conv3d") or shape[1] != 1 or count == 1 or count % 8 or shape[0] not in (count, 2 * count):
        return False
    padding, dilation = attributes.get("padding", 0), ints(attributes.get("dilation", 1), len(kernel))
    centred = padding == "same" or (not isinstance(padding, str) and ints(padding, len(kernel)) == [(k - 1) // 2 for k in kernel])
    strides = all(s in (1, 2) for s in ints(attributes.get("stride", 1), len(kernel)))
    square = kernel[0] in (3, 5, 7) and len(set(kernel)) == 1
    return square and strides and all(d == 1 for d in dilation) and centred


def saturation(op: str, shape: tuple[int, ...], attributes: Mapping[str, Any], engine: str, isa: str) -> str | None:
    """How full 8-bit activations may overflow 16 bits: None, "pairs" (see depthwise.py: provable) or "any" (not provable)."""
    if engine == "qnnpack":
        return None
    if isa not in VNNI:
        return "any"
    phases = Phases.of(shape, attributes) if op.startswith("conv_transpose") else None
    name, shape, attributes = (op, shape, attributes) if phases is None else (op.replace("_transpose", ""), phases.shape, phases.attributes)
    if not fbgemm_packs(engine, isa, attributes.get("groups", 1)) or not pairs_taps(name, shape, attributes):
        return None
    return "pairs" if phases is None else "any"  # the proof is about scales of output channels, which phases share


def saturates(site: Site) -> bool:
    return saturation(site.op.name, site.args[1].shape, site.attributes, site.engine, site.isa) is not None


def batched(site: Site, emit: Emit, x: Any, dims: int) -> Any:
    """The input with a batch dimension, which the kernels want."""
    return emit.call(torch.ops.aten.unsqueeze.default, x, 0) if site.rank == dims + 1 else x


def unbatched(site: Site, emit: Emit, result: fx.Node, dims: int) -> fx.Node:
    """Takes the batch dimension of `batched` away again."""
    return emit.call(torch.ops.aten.squeeze.dim, result, 0) if site.rank == dims + 1 else result


def refuse_computed(site: Site) -> str | None:
    constant = isinstance(site.args[0], Operand) and isinstance(site.args[1], Weight)
    return None if constant else "its weight is computed, not a constant"


def refuse_conv(site: Site) -> str | None:
    return refuse_computed(site) or refuse_weight(site.args[1], site, axis=0)


def refuse_weight(weight: Weight, site: Site, axis: int) -> str | None:
    if weight.axis not in (None, axis):
        return f"the weight is quantized along axis {weight.axis}, kernels take axis {axis}"
    zero_point = constant_of(weight.zero_point)
    if site.engine == "onednn" and zero_point is not None and bool((zero_point != 0).any()):
        return "onednn takes symmetric weights only"
    return None


def is_symmetric(weight: Weight) -> bool:
    zero_point = constant_of(weight.zero_point)
    return zero_point is None or not bool(zero_point.any())


def _grouped(site: Site, emit: Emit, weight: Weight, attributes: Mapping[str, Any], symmetric: bool) -> tuple[fx.Node, int]:
    """The weight and its number of groups as packed: merged where the packing library fails or crawls, and where its depthwise kernel
    would overflow 16 bits, as it may with a weight that was given in int8."""
    count, name = attributes.get("groups", 1), f"conv{len(weight.shape) - 2}d"
    given = constant_of(weight.node)
    fits = pairs_taps(name, weight.shape, attributes) and (given is None or safe_weight(given))
    crawls = weight.shape[1] == 1 and not fits
    size = groups.merge(weight.shape, count, lambda n: fbgemm_packs(site.engine, site.isa, n, symmetric), crawls)
    if size == 1:
        return weight.node, count
    return emit.call(runtime.merge_groups, weight.node, weight.zero_point, count, size), count // size


def padded(site: Site, emit: Emit, source: Any, kernel: tuple[int, ...]) -> tuple[Any, list[int]]:
    """The input as the kernel takes it and the padding left to it: it pads with zeros, alike on both sides."""
    sides, mode = sides_of(site, kernel), site.get("padding_mode", "zeros")
    if (mode == "zeros" and all(a == b for a, b in sides)) or not any(b for _, b in sides):
        return source, [a for a, _ in sides]
    flat = [p for side in reversed(sides) for p in side]
    return emit.call(floats.pad_own, source, flat, "constant" if mode == "zeros" else mode), [0] * len(kernel)


def prepacked(site: Site, emit: Emit, weight: Weight, bias: fx.Node | None, attributes: Mapping[str, Any], symmetric: bool) -> fx.Node:
    """The pack (once) of a convolution with these attributes, whose padding the kernel does."""
    dims = len(weight.shape) - 2
    settings = (("stride", 1), ("padding", 0), ("dilation", 1))
    stride, padding, dilation = (ints(attributes.get(name, default), dims) for name, default in settings)
    values, count = _grouped(site, emit, weight, attributes, symmetric)
    names = (values, weight.scale, weight.zero_point, bias)
    return emit.call(CONV[dims][0], *names, stride, padding, dilation, count, axis_of(weight), tag(site))


def packed(site: Site, emit: Emit) -> tuple[Any, fx.Node, list[int]]:
    """The input as the kernel takes it, the pack (once), and the padding that the kernel does."""
    weight = site.args[1]
    kernel = weight.shape[2:]
    dims = len(kernel)
    source, padding = padded(site, emit, batched(site, emit, site.args[0], dims), kernel)
    pack = prepacked(site, emit, weight, bias_of(site), {**site.attributes, "padding": padding}, is_symmetric(weight))
    return source, pack, padding


def emit_conv(site: Site, emit: Emit) -> fx.Node:
    """prepack (once) and quantized::convNd; padding that the kernel lacks is a pad before it."""
    dims = len(site.args[1].shape) - 2
    _, plain, relu = CONV[dims]
    source, pack, _ = packed(site, emit)
    with_relu = needs_relu(site)
    result = emit.call(relu if with_relu else plain, source, pack, site.scale, site.zero_point)
    return finish(site, emit, unbatched(site, emit, result, dims), relu_done=with_relu)


KERNELS = tuple(Kernel(f"conv{dims}d", ENGINES, emit_conv, refuse_conv, saturates) for dims in CONV)
