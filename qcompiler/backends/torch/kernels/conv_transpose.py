"""Transposed convolutions, computed as plain ones (phases.py) whose results are interleaved.

torch's own kernels are not used. On x86 and onednn they are wrong where in and out channels differ, there and on fbgemm they take
one weight scale for all channels, onednn's has no output_padding, and they are hardly faster: 128 to 64 channels, 2 x 2, stride 2
at 28 x 28 takes 531 us on x86 and 742 on fbgemm, as phases 459 and 724; 21 channels, 16 x 16, stride 8 199 ms on fbgemm, and 2.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import fx

from qcompiler.backends.torch.kernels import conv
from qcompiler.backends.torch.kernels.phases import Phases
from qcompiler.backends.torch.runtime import channels, float_windows, packs
from qcompiler.backends.torch.site import ENGINES, Emit, Kernel, Site, Weight, finish, ints, needs_relu

FLOAT: Mapping[int, Callable[..., torch.Tensor]] = {
    1: float_windows.conv_transpose1d_float,
    2: float_windows.conv_transpose2d_float,
    3: float_windows.conv_transpose3d_float,
}


def refuse(site: Site) -> str | None:
    """Reasons against phases; float arithmetic takes the rest."""
    problem = conv.refuse_computed(site)
    if problem is None and site.engine == "qnnpack" and len(site.args[1].shape) == 5:
        return "TorchScript cannot write qnnpack's 3-d packs"
    if problem is None and Phases.of(site.args[1].shape, site.attributes) is None:
        return "a transposed convolution with both a stride and a dilation is no set of plain ones"
    return problem or conv.refuse_weight(site.args[1], site, axis=1)


def emit_phases(site: Site, emit: Emit) -> fx.Node:
    """prepack (once), quantized::convNd, and the phases interleaved."""
    weight: Weight = site.args[1]
    phases = Phases.of(weight.shape, site.attributes)
    assert phases is not None
    dims, groups = len(phases.stride), phases.groups
    bias = conv.bias_of(site)
    scale, zero_point = weight.scale, weight.zero_point
    values = emit.call(channels.split_phases, weight.node, zero_point, phases.stride, groups)
    if weight.axis is not None:
        scale, zero_point = (emit.call(channels.repeat_channels, t, 1, groups * phases.count) for t in (scale, zero_point))
    if bias is not None and phases.count > 1:
        bias = emit.call(channels.repeat_channels, bias, groups, phases.count)
    symmetric = conv.is_symmetric(weight)
    plain = Weight(values, scale, zero_point, None if weight.axis is None else 0, phases.shape)
    source, relu = conv.batched(site, emit, site.args[0], dims), needs_relu(site)
    source, padding = conv.within_window(site, emit, source, phases.shape[2:], phases.padding, phases.dilation)
    attributes = {**phases.attributes, "padding": padding}
    pack = conv.prepacked(site, emit, plain, bias, attributes, symmetric)
    result = conv.convolve(site, emit, source, pack, conv.ConvForm(phases.shape, attributes, symmetric), relu)
    if phases.count > 1 or any((*phases.first, *phases.last)):
        result = emit.call(channels.join_phases, result, phases.stride, groups, phases.first, phases.last)
    return finish(site, emit, conv.unbatched(site, emit, result, dims), relu_done=relu)


def emit_float(site: Site, emit: Emit) -> fx.Node:
    x, weight = site.args[0], site.args[1]
    dims = len(weight.shape) - 2
    stride, padding, extra, dilation = (
        ints(site.get(name, default), dims) for name, default in (("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1))
    )
    values = emit.call(packs.float_weight, weight.node, weight.scale, weight.zero_point, conv.axis_of(weight))
    where = (stride, padding, extra, site.get("groups", 1), dilation)
    return finish(site, emit, emit.call(FLOAT[dims], x, values, conv.bias_of(site), *where, site.scale, site.zero_point))


def _kernels(name: str) -> tuple[Kernel, ...]:
    return (
        Kernel(name, ENGINES, emit_phases, refuse, conv.saturates),
        Kernel(name, ENGINES, emit_float, conv.refuse_computed, note="float arithmetic, int8 weights"),
    )


KERNELS = tuple(kernel for dims in FLOAT for kernel in _kernels(f"conv_transpose{dims}d"))
