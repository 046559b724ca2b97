"""What puts values into places of a tensor that other tensors name."""

from __future__ import annotations

import onnx_ir as ir
import torch

from qcompiler.export.onnx_qdq.refusals import NoForm
from qcompiler.export.onnx_qdq.site import Form, Operand, Site

_REDUCTIONS = {None: "none", "add": "add", "multiply": "mul"}


def _put(site: Site, index: ir.Value, source: ir.Value, reduction: str) -> ir.Value:
    axis = site.x.axis(site.get("dim"))
    return site.call("ScatterElements", site.operand(site.x, site.dtype), index, source, axis=axis, reduction=reduction)


def _of_index(site: Site, source: Operand, index: Operand) -> ir.Value:
    """As much of the source as the index has places."""
    value = site.operand(source, site.dtype)
    if source.sizes == index.sizes:
        return value
    axes = range(source.rank)
    return site.call("Slice", value, site.ints(*(0 for _ in axes)), site.extents.vector(index.sizes), site.ints(*axes))


def scatter(site: Site) -> ir.Value:
    """One place for each element of the index."""
    index, source, reduce = site.tensor("index"), site.get("src"), site.get("reduce")
    if reduce not in _REDUCTIONS:
        raise NoForm(f"reduce={reduce!r:.40} has no op")
    if isinstance(source, Operand):
        value = _of_index(site, source, index)
    else:
        value = site.call("Expand", site.operand(source, site.dtype), site.extents.vector(index.sizes))
    return _put(site, site.operand(index, torch.int64), value, _REDUCTIONS[reduce])  # type: ignore[index]


def scatter_add(site: Site) -> ir.Value:
    index = site.tensor("index")
    return _put(site, site.operand(index, torch.int64), _of_index(site, site.tensor("src"), index), "add")


def by_slices(reduction: str) -> Form:
    """A slice of the source for each place along the dimension."""

    def form(site: Site) -> ir.Value:
        index, source = site.tensor("index"), site.tensor("source")
        axis, rank = site.x.axis(site.get("dim")), site.x.rank
        if source.rank != rank:
            raise NoForm("its source has another rank than what it goes into")
        column = site.call("Reshape", site.operand(index, torch.int64), site.ints(*(-1 if i == axis else 1 for i in range(rank))))
        places = site.call("Expand", column, site.extents.vector(source.sizes))
        value = site.operand(source, site.dtype)
        if (alpha := site.get("alpha")) not in (None, 1):
            value = site.call("Mul", value, site.operand(alpha, site.dtype))
        return _put(site, places, value, reduction)

    return form


FORMS: dict[str, Form] = {
    "scatter": scatter, "scatter_add": scatter_add, "index_add": by_slices("add"), "index_copy": by_slices("none"),
}  # fmt: skip
