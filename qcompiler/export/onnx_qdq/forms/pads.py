"""Padding: torch's list begins at the last axis, ONNX's has all beginnings and then all ends."""

from __future__ import annotations

import math

import onnx_ir as ir
import torch

from qcompiler.export.onnx_qdq.refusals import NoForm
from qcompiler.export.onnx_qdq.site import Form, Operand, Site

MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


def padded(site: Site, x: Operand, sides: list[int], mode: str, value: float) -> ir.Value:
    """`sides`: before and behind the last axis, then the one before it, as torch has it."""
    befores, behinds = sides[::2][::-1], sides[1::2][::-1]
    axes = list(range(x.rank - len(befores), x.rank))
    if mode == "circular":
        return _circular(site, x, list(zip(axes, befores, behinds)))
    if mode not in MODES:
        raise NoForm(f"the padding mode {mode!r} is unknown")
    wanted = [*[0] * axes[0], *befores, *[0] * axes[0], *behinds]
    filling = site.operand(value, x.dtype) if mode == "constant" else None
    return site.call("Pad", x.value, site.ints(*wanted), filling, mode=MODES[mode])


def _circular(site: Site, x: Operand, axes: list[tuple[int, int, int]]) -> ir.Value:
    """The end in front of the beginning, the beginning behind the end, axis by axis."""
    value, far = x.value, torch.iinfo(torch.int64).max
    for axis, before, behind in axes:
        if before < 0 or behind < 0:
            raise NoForm("circular padding takes away")
        along = site.ints(axis)
        parts = [site.call("Slice", value, site.ints(-before), site.ints(far), along)] if before else []
        parts += [value]
        parts += [site.call("Slice", value, site.ints(0), site.ints(behind), along)] if behind else []
        value = site.call("Concat", *parts, axis=axis)
    return value


def pad(site: Site) -> ir.Value:
    """-inf, which only a max pool behind it can mean, is the smallest value that the codes have."""
    value = site.get("value")
    filling = 0.0 if value is None else float(site.number("value"))
    if filling == -math.inf and site.output is not None:
        filling = site.output.range[0]
    return padded(site, site.x, site.integers("pad"), site.text("mode"), filling)


FORMS: dict[str, Form] = {"pad": pad}
