"""Tensors made of sizes and numbers."""

from __future__ import annotations

import onnx_ir as ir

from qcompiler.export.onnx_qdq.site import Form, Site


def _filled(site: Site, value: float) -> ir.Value:
    return site.call("Expand", site.constant(value, site.dtype), site.extents.vector(site.shape))


def filled_with(value: float) -> Form:
    return lambda site: _filled(site, value)


def full(site: Site) -> ir.Value:
    value = site.operand(site.get("fill_value"), site.dtype)
    return site.call("Expand", value, site.extents.vector(site.shape))


def arange(site: Site) -> ir.Value:
    start, end = site.get("start"), site.get("end")
    if end is None:
        start, end = 0, start
    step = 1 if site.get("step") is None else site.get("step")
    return site.call("Range", *(site.operand(part, site.dtype) for part in (start, end, step)))


FORMS: dict[str, Form] = {
    "zeros": filled_with(0.0), "ones": filled_with(1.0), "full": full, "arange": arange,
}  # fmt: skip
