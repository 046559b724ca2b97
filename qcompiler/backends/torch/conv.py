"""Convolutions: which taps may overflow, how weights are packed, what is refused where.

Measured (measured.json): the x86 and onednn engines have no per-channel transposed convolution and get it wrong where
in and out channels differ; qnnpack has no correct 3-d one and fails per channel with groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from qcompiler.backends.torch import floats, groups, runtime
from qcompiler.backends.torch.site import ENGINES, VNNI, Emit, Kernel, Operand, Site, Weight, constant_of, finish, ints, needs_relu

OPS = torch.ops.quantized
CONV: dict[int, tuple[Any, Any, Any]] = {
    1: (runtime.prepack_conv1d, OPS.conv1d.default, OPS.conv1d_relu.default),
    2: (runtime.prepack_conv2d, OPS.conv2d.new, OPS.conv2d_relu.new),
    3: (runtime.prepack_conv3d, OPS.conv3d.new, OPS.conv3d_relu.new),
}
TRANSPOSE: dict[int, tuple[Any, Any, Any]] = {
    1: (runtime.prepack_conv_transpose1d, OPS.conv_transpose1d.default, floats.conv_transpose1d_float),
    2: (runtime.prepack_conv_transpose2d, OPS.conv_transpose2d.default, floats.conv_transpose2d_float),
    3: (runtime.prepack_conv_transpose3d, OPS.conv_transpose3d.default, floats.conv_transpose3d_float),
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


def crawls(op: str, shape: tuple[int, ...], attributes: Mapping[str, Any]) -> bool:
    """Whether fbgemm has no fast kernel for this depthwise convolution: it takes ten to a hundred times as long as in float there."""
    return shape[1] == 1 and attributes.get("groups", 1) > 1 and not pairs_taps(op, shape, attributes)


def saturation(op: str, shape: tuple[int, ...], attributes: Mapping[str, Any], engine: str, isa: str) -> str | None:
    """How full 8-bit activations may overflow 16 bits: None, "pairs" (see depthwise.py: provable) or "any" (not provable)."""
    if engine == "qnnpack":
        return None
    if isa not in VNNI:
        return "any"
    fbgemm = fbgemm_packs(engine, isa, attributes.get("groups", 1))
    return "pairs" if fbgemm and pairs_taps(op, shape, attributes) else None


def saturates(site: Site) -> bool:
    return saturation(site.op.name, site.args[1].shape, site.attributes, site.engine, site.isa) is not None


def per_channel(op: str, engine: str, groups: int = 1) -> bool:
    """Whether the engine's own kernel takes one weight scale per output channel (else only the float one does)."""
    if not op.startswith("conv_transpose"):
        return True
    return engine == "qnnpack" and groups == 1 and op != "conv_transpose3d"


def batched(site: Site, emit: Emit, x: Any, dims: int) -> Any:
    """The input with a batch dimension, which the kernels want."""
    return emit.call(torch.ops.aten.unsqueeze.default, x, 0) if site.rank == dims + 1 else x


def unbatched(site: Site, emit: Emit, result: fx.Node, dims: int) -> fx.Node:
    """Takes the batch dimension of `batched` away again."""
    return emit.call(torch.ops.aten.squeeze.dim, result, 0) if site.rank == dims + 1 else result


def refuse_conv(site: Site) -> str | None:
    if not isinstance(site.args[0], Operand) or not isinstance(site.args[1], Weight):
        return "its weight is computed, not a constant"
    return refuse_weight(site.args[1], site, axis=0)


def refuse_weight(weight: Weight, site: Site, axis: int) -> str | None:
    if weight.axis not in (None, axis):
        return f"the weight is quantized along axis {weight.axis}, kernels take axis {axis}"
    zero_point = constant_of(weight.zero_point)
    if site.engine == "onednn" and zero_point is not None and bool((zero_point != 0).any()):
        return "onednn takes symmetric weights only"
    return None


def _grouped(site: Site, emit: Emit, padding: list[int]) -> tuple[fx.Node, int]:
    """The weight and its number of groups as packed: merged where the packing library fails or crawls. `padding`: the kernel's own."""
    weight, count = site.args[1], site.get("groups", 1)
    zero_point = constant_of(weight.zero_point)
    symmetric = zero_point is None or not bool(zero_point.any())
    onednn = site.engine == "x86" and site.isa in VNNI and symmetric
    slow = onednn and crawls(site.op.name, weight.shape, {**site.attributes, "padding": padding})
    size = groups.merge(weight.shape, count, lambda n: fbgemm_packs(site.engine, site.isa, n, symmetric), slow)
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


def packed(site: Site, emit: Emit) -> tuple[Any, fx.Node, list[int]]:
    """The input as the kernel takes it, the pack (once), and the padding that the kernel does."""
    weight = site.args[1]
    kernel = weight.shape[2:]
    dims = len(kernel)
    source, padding = padded(site, emit, batched(site, emit, site.args[0], dims), kernel)
    stride, dilation = ints(site.get("stride", 1), dims), ints(site.get("dilation", 1), dims)
    values, count = _grouped(site, emit, padding)
    names = (values, weight.scale, weight.zero_point, bias_of(site))
    return source, emit.call(CONV[dims][0], *names, stride, padding, dilation, count, axis_of(weight), tag(site)), padding


def emit_conv(site: Site, emit: Emit) -> fx.Node:
    """prepack (once) and quantized::convNd; padding that the kernel lacks is a pad before it."""
    dims = len(site.args[1].shape) - 2
    _, plain, relu = CONV[dims]
    source, pack, _ = packed(site, emit)
    with_relu = needs_relu(site)
    result = emit.call(relu if with_relu else plain, source, pack, site.scale, site.zero_point)
    return finish(site, emit, unbatched(site, emit, result, dims), relu_done=with_relu)


def _transpose_settings(site: Site, dims: int) -> tuple[list[int], list[int], list[int], int, list[int]]:
    stride, padding = ints(site.get("stride", 1), dims), ints(site.get("padding", 0), dims)
    return stride, padding, ints(site.get("output_padding", 0), dims), site.get("groups", 1), ints(site.get("dilation", 1), dims)


def refuse_transpose(site: Site) -> str | None:
    """Reasons against the engine's own transposed kernel; the float one takes the rest."""
    problem = refuse_transpose_float(site)
    if problem is not None:
        return problem
    weight: Weight = site.args[1]
    groups, dims = site.get("groups", 1), len(weight.shape) - 2
    if site.engine == "qnnpack":
        if dims == 3:
            return "qnnpack's 3-d transposed convolution is wrong"
        if weight.axis is not None and (groups > 1 or weight.axis != 1):
            return "qnnpack's transposed convolution takes one scale per output channel only without groups"
        return None
    if weight.axis is not None:
        return f"{site.engine} has no transposed convolution with one scale per channel"
    if any(ints(site.get("output_padding", 0), dims)) and site.engine == "onednn":
        return "onednn's transposed convolution has no output_padding"
    return refuse_weight(weight, site, axis=1)


def unequal(site: Site) -> str | None:
    """x86 and onednn garble transposed convolutions whose in and out channels differ."""
    weight: Weight = site.args[1]
    return "in and out channels differ: wrong on this engine" if weight.shape[0] != weight.shape[1] * site.get("groups", 1) else None


def refuse_transpose_float(site: Site) -> str | None:
    if not isinstance(site.args[0], Operand) or not isinstance(site.args[1], Weight):
        return "its weight is computed, not a constant"
    return None


def emit_transpose(site: Site, emit: Emit) -> fx.Node:
    """prepack (once) and quantized::conv_transposeNd. Where in > out garbles values, zero weights for the missing output
    channels make them equal and the surplus is cut off: still half the time of float arithmetic.
    """
    x, weight = site.args[0], site.args[1]
    dims = len(weight.shape) - 2
    stride, padding, output_padding, groups, dilation = _transpose_settings(site, dims)
    prepack, plain, _ = TRANSPOSE[dims]
    values, bias, outputs = weight.node, bias_of(site), weight.shape[1] * groups
    widen = site.engine in ("x86", "onednn") and unequal(site) is not None
    if widen:
        values = emit.call(runtime.pad_end, values, 1, weight.shape[0])
        bias = bias and emit.call(runtime.pad_end, bias, 0, weight.shape[0])
    names = (values, weight.scale, weight.zero_point, bias)
    pack = emit.call(prepack, *names, stride, padding, output_padding, dilation, groups, axis_of(weight), tag(site))
    result = emit.call(plain, batched(site, emit, x, dims), pack, site.scale, site.zero_point)
    if widen:
        result = emit.call(torch.ops.aten.narrow.default, result, 1, 0, outputs)
    return finish(site, emit, unbatched(site, emit, result, dims))


def emit_transpose_float(site: Site, emit: Emit) -> fx.Node:
    x, weight = site.args[0], site.args[1]
    dims = len(weight.shape) - 2
    stride, padding, output_padding, groups, dilation = _transpose_settings(site, dims)
    values = emit.call(runtime.float_weight, weight.node, weight.scale, weight.zero_point, axis_of(weight))
    where = (stride, padding, output_padding, groups, dilation)
    result = emit.call(TRANSPOSE[dims][2], x, values, bias_of(site), *where, site.scale, site.zero_point)
    return finish(site, emit, result)


def _guarded(site: Site) -> str | None:
    problem = refuse_transpose(site)
    if problem is not None:
        return problem
    widens = site.get("groups", 1) == 1 and site.args[1].shape[0] > site.args[1].shape[1]
    return None if widens else unequal(site)


def _kernels() -> tuple[Kernel, ...]:
    made: list[Kernel] = []
    refusals: tuple[tuple[tuple[str, ...], Callable[[Site], str | None]], ...] = (
        (("x86", "onednn"), _guarded),
        (("fbgemm", "qnnpack"), refuse_transpose),
    )
    for dims in (1, 2, 3):
        made.append(Kernel(f"conv{dims}d", ENGINES, emit_conv, refuse_conv, saturates))
        name = f"conv_transpose{dims}d"
        made += [Kernel(name, engines, emit_transpose, refuse, saturates) for engines, refuse in refusals]
        made.append(Kernel(name, ENGINES, emit_transpose_float, refuse_transpose_float, note="float arithmetic, int8 weights"))
    return tuple(made)


KERNELS = _kernels()
