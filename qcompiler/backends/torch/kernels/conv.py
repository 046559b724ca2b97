"""Convolutions: which taps may overflow, how weights are packed, what is refused where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from qcompiler.backends.torch.kernels import fbgemm_faults, groups, onednn_faults
from qcompiler.backends.torch.kernels.as_depthwise import SETTINGS, AsDepthwise, ConvParts, as_depthwise, emit_as_depthwise
from qcompiler.backends.torch.kernels.depthwise import safe_weight
from qcompiler.backends.torch.kernels.phases import Phases
from qcompiler.backends.torch.runtime import channels, fit, float_windows, packs
from qcompiler.backends.torch.site import (
    ENGINES,
    VNNI,
    WIDE_VECTORS,
    Emit,
    Kernel,
    Operand,
    Site,
    Weight,
    constant_of,
    finish,
    ints,
    needs_relu,
)
from qcompiler.ops.spec import CONVOLUTIONS, Family

OPS = torch.ops.quantized
CONV: dict[int, tuple[Any, Any, Any]] = {
    1: (packs.prepack_conv1d, OPS.conv1d.default, OPS.conv1d_relu.default),
    2: (packs.prepack_conv2d, OPS.conv2d.new, OPS.conv2d_relu.new),
    3: (packs.prepack_conv3d, OPS.conv3d.new, OPS.conv3d_relu.new),
}
ONEDNN = ("x86", "onednn")  # engines that pack convolutions with oneDNN, x86 some of them


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


def onednn_packs(engine: str, count: int, symmetric: bool = True) -> bool:
    """Whether oneDNN may pack `count` groups where the program runs: x86 looks at that machine, not at the one compiled for."""
    return engine == "onednn" or (engine == "x86" and count <= groups.ONEDNN_GROUPS and symmetric)


def pairs_taps(shape: tuple[int, ...], attributes: Mapping[str, Any]) -> bool:
    """Whether fbgemm's depthwise kernel takes this convolution: it adds neighbouring taps in 16 bits.

    `shape` is the weight's (O, I/g, *kernel). Found by trying 5670 shapes with weights that overflow: none escapes.
    """
    kernel, count = shape[2:], attributes.get("groups", 1)
    if len(kernel) not in (2, 3) or shape[1] != 1 or count == 1 or count % 8 or shape[0] not in (count, 2 * count):
        return False
    padding, dilation = attributes.get("padding", 0), ints(attributes.get("dilation", 1), len(kernel))
    centred = padding == "same" or (not isinstance(padding, str) and ints(padding, len(kernel)) == [(k - 1) // 2 for k in kernel])
    strides = all(s in (1, 2) for s in ints(attributes.get("stride", 1), len(kernel)))
    square = kernel[0] in (3, 5, 7) and len(set(kernel)) == 1
    return square and strides and all(d == 1 for d in dilation) and centred


def saturation(family: Family, shape: tuple[int, ...], attributes: Mapping[str, Any], engine: str, isa: str) -> str | None:
    """How full 8-bit activations may overflow 16 bits: None, "pairs" (see depthwise.py: provable) or "any" (not provable)."""
    if engine == "qnnpack":
        return None
    if isa not in VNNI:
        return "any"
    phases = Phases.of(shape, attributes) if family is Family.TRANSPOSED else None
    shape, attributes = (shape, attributes) if phases is None else (phases.shape, phases.attributes)
    paired = family in CONVOLUTIONS and pairs_taps(shape, attributes)
    if not paired or not fbgemm_packs(engine, isa, attributes.get("groups", 1)):
        return None
    return "pairs" if phases is None else "any"  # the proof is about scales of output channels, which phases share


def saturates(site: Site) -> bool:
    return saturation(site.op.family, site.args[1].shape, site.attributes, site.engine, site.isa) is not None


def batched(site: Site, emit: Emit, x: object, dims: int) -> Any:
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


def merging(site: Site, shape: tuple[int, ...], attributes: Mapping[str, Any], symmetric: bool, safe: bool = True) -> int:
    """How many groups are packed as one, where the packing library fails or crawls; `shape` is the weight's.

    `safe`: whether 16-bit sums of its depthwise kernel are known to hold the weight's products.
    """
    count = attributes.get("groups", 1)

    def mixed_up(wide: tuple[int, ...], n: int) -> bool:
        return onednn_packs(site.engine, n, symmetric) and onednn_faults.misplaces_groups(wide, n)

    if site.engine == "onednn" and site.isa not in WIDE_VECTORS:
        return groups.merge_for_onednn(shape, count, mixed_up)
    crawls = shape[1] == 1 and not (safe and pairs_taps(shape, attributes))
    return groups.merge(shape, count, lambda n: fbgemm_packs(site.engine, site.isa, n, symmetric), crawls, mixed_up)


def _grouped(site: Site, emit: Emit, weight: Weight, attributes: Mapping[str, Any], symmetric: bool) -> tuple[fx.Node, int]:
    """The weight and its number of groups as packed: merged where the packing library fails or crawls, and where its depthwise kernel
    alone would overflow 16 bits, as it may with a weight that was given in int8. Without VNNI all kernels add in 16 bits: activations
    have 7 bits then, and merged groups would be slower and no safer."""
    given = constant_of(weight.node)
    safe = site.isa not in VNNI or given is None or weight.shape[1] != 1 or safe_weight(given)
    count, size = attributes.get("groups", 1), merging(site, weight.shape, attributes, symmetric, safe)
    if size == 1:
        return weight.node, count
    return emit.call(channels.merge_groups, weight.node, weight.zero_point, count, size), count // size


def padded(site: Site, emit: Emit, source: object, kernel: tuple[int, ...]) -> tuple[Any, list[int]]:
    """The input as the kernel takes it and the padding left to it: it pads with zeros, alike on both sides, less than a window."""
    sides, mode = sides_of(site, kernel), site.get("padding_mode", "zeros")
    if not any(b for _, b in sides):
        return source, [a for a, _ in sides]
    if mode == "zeros" and all(a == b for a, b in sides):
        return within_window(site, emit, source, kernel, [a for a, _ in sides], ints(site.get("dilation", 1), len(kernel)))
    flat = [p for side in reversed(sides) for p in side]
    return emit.call(float_windows.pad_own, source, flat, "constant" if mode == "zeros" else mode), [0] * len(kernel)


def within_window(
    site: Site, emit: Emit, source: object, kernel: Sequence[int], padding: list[int], dilation: list[int]
) -> tuple[object, list[int]]:
    """The input with its zeros around it where a window fits into the padding, and the padding left to the kernel."""
    if site.engine not in ONEDNN or not onednn_faults.overpads(kernel, padding, dilation):
        return source, padding
    flat = [p for side in reversed(padding) for p in (side, side)]
    return emit.call(float_windows.pad_own, source, flat, "constant"), [0] * len(kernel)


@dataclass(frozen=True)
class ConvForm:
    """A convolution as its kernel sees it: the shape of its weight, its attributes as in `prepacked`, whether its zero points are 0."""

    shape: tuple[int, ...]
    attributes: Mapping[str, Any]
    symmetric: bool


def sizes_of(site: Site, form: ConvForm) -> onednn_faults.Sizes:
    """Which input sizes the kernel is right for."""
    shape, attributes, symmetric = form.shape, form.attributes, form.symmetric
    dims, merged = len(shape) - 2, merging(site, shape, attributes, symmetric)
    stride, padding, dilation = (ints(attributes.get(name, default), dims) for name, default in SETTINGS)
    found = onednn_faults.fitting(shape[2:], padding, dilation)
    if onednn_packs(site.engine, attributes.get("groups", 1) // merged, symmetric):
        found = onednn_faults.sizes((shape[0], shape[1] * merged, *shape[2:]), stride, padding, dilation)
    depthwise = site.engine in ("x86", "fbgemm") and merged == 1 and pairs_taps(shape, attributes)
    return fbgemm_faults.grown(found, stride, padding) if depthwise else found


def convolve(
    site: Site,
    emit: Emit,
    source: object,
    pack: fx.Node,
    form: ConvForm,
    relu: bool,
) -> fx.Node:
    """quantized::convNd on a pack of `prepacked`, and on an input of sizes that it is right for."""
    dims = len(form.shape) - 2
    _, plain, with_relu = CONV[dims]
    sizes = sizes_of(site, form)
    smallest, least, stride = sizes.trailing(ints(form.attributes.get("stride", 1), dims))
    large = emit.call(fit.at_least, source, smallest, least) if sizes.checked else source
    result = emit.call(with_relu if relu else plain, large, pack, site.scale, site.zero_point)
    return emit.call(fit.without_more, result, source, smallest, least, stride) if sizes.grown else result


def prepacked(site: Site, emit: Emit, weight: Weight, bias: fx.Node | None, attributes: Mapping[str, object], symmetric: bool) -> fx.Node:
    """The pack (once) of a convolution with these attributes, whose padding the kernel does."""
    dims = len(weight.shape) - 2
    stride, padding, dilation = (ints(attributes.get(name, default), dims) for name, default in SETTINGS)
    values, count = _grouped(site, emit, weight, attributes, symmetric)
    names = (values, weight.scale, weight.zero_point, bias)
    return emit.call(CONV[dims][0], *names, stride, padding, dilation, count, axis_of(weight), tag(site))


def form_of(site: Site, padding: list[int]) -> AsDepthwise | None:
    """The form in which fbgemm's depthwise kernel takes the convolution, where it does not as it stands and no proof is due. A stride
    stays out of the kernel where oneDNN may pack it, which is wrong for one column."""
    weight, attributes = site.args[1], {**site.attributes, "padding": padding}
    count = site.get("groups", 1)
    if site.engine not in ("x86", "fbgemm") or site.isa in VNNI or pairs_taps(weight.shape, attributes):
        return None
    return as_depthwise(weight.shape, attributes, strides=not onednn_packs(site.engine, count, is_symmetric(weight)))


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
    weight, with_relu = site.args[1], needs_relu(site)
    kernel = weight.shape[2:]
    source, padding = padded(site, emit, batched(site, emit, site.args[0], len(kernel)), kernel)
    depthwise = form_of(site, padding)
    if depthwise is not None:
        sizes = onednn_faults.fitting(kernel, padding, depthwise.dilation)
        large = emit.call(fit.at_least, source, sizes.smallest, sizes.least) if sizes.checked else source
        parts = ConvParts(large, bias_of(site), axis_of(weight), tag(site), with_relu)
        result = emit_as_depthwise(site, emit, depthwise, parts)
    else:
        form = ConvForm(weight.shape, {**site.attributes, "padding": padding}, is_symmetric(weight))
        pack = prepacked(site, emit, weight, bias_of(site), form.attributes, form.symmetric)
        result = convolve(site, emit, source, pack, form, with_relu)
    return finish(site, emit, unbatched(site, emit, result, len(kernel)), relu_done=with_relu)


KERNELS = tuple(Kernel(f"conv{dims}d", ENGINES, emit_conv, refuse_conv, saturates) for dims in CONV)
