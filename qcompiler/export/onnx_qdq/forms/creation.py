"""Tensors made of sizes and numbers."""

from __future__ import annotations

import onnx_ir as ir

from qcompiler.export.onnx_qdq.refusals import NoForm
from qcompiler.export.onnx_qdq.site import Form, Made, Operand, Site


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


def meshgrid(site: Site) -> Made:
    """Each vector along a dimension of its own, spread over the others; `xy` puts the second one first."""
    tensors, shapes = site.get("tensors"), site.result
    assert isinstance(tensors, list) and isinstance(shapes, list)
    order = [1, 0, *range(2, len(tensors))] if site.get("indexing") == "xy" and len(tensors) > 1 else list(range(len(tensors)))
    made: list[Made] = []
    for axis, tensor, shape in zip(order, tensors, shapes, strict=True):
        if not isinstance(tensor, Operand) or not isinstance(shape, tuple):
            raise NoForm("one of what it spreads is no tensor")
        line = site.call("Reshape", tensor.value, site.ints(*(-1 if i == axis else 1 for i in range(len(tensors)))))
        made.append(site.call("Expand", line, site.extents.vector(shape)))
    return made


FORMS: dict[str, Form] = {
    "zeros": filled_with(0.0), "ones": filled_with(1.0), "full": full, "arange": arange, "meshgrid": meshgrid,
}  # fmt: skip
