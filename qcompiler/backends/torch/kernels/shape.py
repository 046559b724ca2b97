"""Copies: ops that move values. torch's own functions run on quint8 tensors and keep the scale."""

from __future__ import annotations

from torch import fx

from qcompiler.backends.torch.kernels.pool import emit_same, refuse_input
from qcompiler.backends.torch.runtime import float_windows, floats
from qcompiler.backends.torch.runtime import functions as runtime
from qcompiler.backends.torch.site import ENGINES, Emit, Kernel, Site, ints

COPIES = (
    *("flatten", "unflatten", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "narrow", "select", "getitem"),
    *("chunk", "split", "unbind", "repeat", "expand", "contiguous", "detach", "identity", "flip"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "tensor_split", "repeat_interleave", "index_select", "diagonal"),
    "unfold_dimension",
)
UNFOLD = (("kernel_size", 1), ("dilation", 1), ("padding", 0), ("stride", 1))
TRIANGLES = {"tril": floats.tril_float, "triu": floats.triu_float}


def emit_pad(site: Site, emit: Emit) -> fx.Node:
    """All modes; exact, and faster than torch's constant_pad_nd on quint8. The value lands on the input's scale."""
    value = site.get("value")
    settings = (list(site.get("pad")), site.get("mode", "constant"), 0.0 if value is None else float(value))
    return emit.call(float_windows.pad_float, site.args[0], *settings, site.scale, site.zero_point)


def emit_roll(site: Site, emit: Emit) -> fx.Node:
    """torch.roll does not take quint8 tensors; exact in float."""
    shifts, dims = site.get("shifts"), site.get("dims", ())
    settings = ([shifts] if isinstance(shifts, (int, fx.Node)) else list(shifts), [dims] if isinstance(dims, int) else list(dims))
    return emit.call(float_windows.roll_float, site.args[0], *settings, site.scale, site.zero_point)


def emit_gather(site: Site, emit: Emit) -> fx.Node:
    return emit.call(runtime.gather, site.args[0], site.get("dim"), site.get("index"), site.scale, site.zero_point)


def emit_triangle(site: Site, emit: Emit) -> fx.Node:
    return emit.call(TRIANGLES[site.op.name], site.args[0], site.get("diagonal", 0), site.scale, site.zero_point)


def emit_unfold(site: Site, emit: Emit) -> fx.Node:
    """Exact: zeros come in as padding."""
    settings = [ints(site.get(name, default), 2) for name, default in UNFOLD]
    return emit.call(float_windows.unfold_float, site.args[0], *settings, site.scale, site.zero_point)


KERNELS = (
    *(Kernel(name, ENGINES, emit_same, refuse_input) for name in COPIES),
    Kernel("roll", ENGINES, emit_roll, refuse_input),
    Kernel("gather", ENGINES, emit_gather, refuse_input),
    *(Kernel(name, ENGINES, emit_triangle, refuse_input, note="float arithmetic") for name in TRIANGLES),
    Kernel("unfold", ENGINES, emit_unfold, refuse_input, note="float arithmetic"),
    Kernel("pad", ENGINES, emit_pad, refuse_input),
)
