"""Copies: ops that move values. torch's own functions run on quint8 tensors and keep the scale."""

from __future__ import annotations

from torch import fx

from qcompiler.backends.torch import floats
from qcompiler.backends.torch.pool import emit_same, refuse_input
from qcompiler.backends.torch.site import ENGINES, Emit, Kernel, Site

COPIES = (
    *("flatten", "unflatten", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "narrow", "select", "getitem"),
    *("chunk", "split", "unbind", "repeat", "expand", "contiguous", "detach", "identity", "flip"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
)


def emit_pad(site: Site, emit: Emit) -> fx.Node:
    """All modes; exact, and faster than torch's constant_pad_nd on quint8. The value lands on the input's scale."""
    value = site.get("value")
    settings = (list(site.get("pad")), site.get("mode", "constant"), 0.0 if value is None else float(value))
    return emit.call(floats.pad_float, site.args[0], *settings, site.scale, site.zero_point)


def emit_roll(site: Site, emit: Emit) -> fx.Node:
    """torch.roll does not take quint8 tensors; exact in float."""
    shifts, dims = site.get("shifts"), site.get("dims", ())
    settings = ([shifts] if isinstance(shifts, (int, fx.Node)) else list(shifts), [dims] if isinstance(dims, int) else list(dims))
    return emit.call(floats.roll_float, site.args[0], *settings, site.scale, site.zero_point)


KERNELS = (
    *(Kernel(name, ENGINES, emit_same, refuse_input) for name in COPIES),
    Kernel("roll", ENGINES, emit_roll, refuse_input),
    Kernel("pad", ENGINES, emit_pad, refuse_input),
)
