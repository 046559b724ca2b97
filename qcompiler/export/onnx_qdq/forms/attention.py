"""Attention in floats: softmax(q k' scale + mask) v."""

from __future__ import annotations

import math

import onnx_ir as ir
import torch

from qcompiler.export.onnx_qdq.refusals import NoForm
from qcompiler.export.onnx_qdq.site import Form, Operand, Site


def _repeated(site: Site, given: Operand, heads: object) -> ir.Value:
    """Keys and values of fewer heads than the queries, each for as many queries."""
    own = given.sizes[-3]
    if own == heads:
        return given.value
    if not isinstance(own, int) or not isinstance(heads, int):
        raise NoForm("the number of its heads changes")
    wide = site.call("Unsqueeze", given.value, site.ints(given.rank - 2))
    counts = [heads // own if i == given.rank - 2 else 1 for i in range(given.rank + 1)]
    wide = site.call("Tile", wide, site.ints(*counts))
    return site.extents.reshaped(wide, None, (*given.sizes[:-3], heads, *given.sizes[-2:]))


def _mask(site: Site, query: Operand, key: Operand) -> ir.Value | None:
    """What is added to the products."""
    given = site.optional("attn_mask")
    if given is not None and given.dtype is torch.bool:
        zero, least = site.constant(0.0, torch.float32), site.constant(-math.inf, torch.float32)
        return site.call("Where", given.value, zero, least)
    if given is not None or not site.flag("is_causal"):
        return None if given is None else given.value
    ends = site.extents.vector([query.sizes[-2], key.sizes[-2]])
    least = site.call("Expand", site.constant(-math.inf, torch.float32), ends)
    return site.call("Trilu", least, site.constant(1, torch.int64), upper=1)


def attention(site: Site) -> ir.Value:
    query, key, value = (site.tensor(name) for name in ("query", "key", "value"))
    if site.get("dropout_p") not in (None, 0, 0.0):
        raise NoForm("it draws random numbers")
    width, scale = query.sizes[-1], site.get("scale")
    if scale is None and isinstance(width, (int,)):
        factor = 1 / math.sqrt(width)
    elif isinstance(scale, (int, float)):
        factor = float(scale)
    else:
        raise NoForm("the width of its heads changes")
    keys, values = key.value, value.value
    if site.flag("enable_gqa"):
        keys, values = (_repeated(site, part, query.sizes[-3]) for part in (key, value))
    order = [*range(key.rank - 2), key.rank - 1, key.rank - 2]
    products = site.call("MatMul", query.value, site.call("Transpose", keys, perm=order))
    products = site.call("Mul", products, site.constant(factor, torch.float32))
    mask = _mask(site, query, key)
    products = products if mask is None else site.call("Add", products, mask)
    return site.call("MatMul", site.call("Softmax", products, axis=-1), values)


FORMS: dict[str, Form] = {"scaled_dot_product_attention": attention}
