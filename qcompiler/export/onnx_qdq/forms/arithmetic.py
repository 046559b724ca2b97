"""Arithmetic of two values, comparisons and logic. ONNX promotes nothing: operands are brought to one dtype."""

from __future__ import annotations

import onnx_ir as ir
import torch

from qcompiler.export.onnx_qdq.site import Arg, Form, Operand, Site
from qcompiler.stages.size_expressions import is_size


def _binary(op: str) -> Form:
    def form(site: Site) -> ir.Value:
        return site.call(op, *(site.operand(site.get(name), site.dtype) for name in ("x", "other")))

    return form


def _sum(op: str) -> Form:
    def form(site: Site) -> ir.Value:
        other = site.operand(site.get("other"), site.dtype)
        if (alpha := site.get("alpha")) not in (None, 1):
            other = site.call("Mul", other, site.operand(alpha, site.dtype))
        return site.call(op, site.operand(site.get("x"), site.dtype), other)

    return form


def outer(site: Site) -> ir.Value:
    column = site.call("Reshape", site.operand(site.get("x"), site.dtype), site.ints(-1, 1))
    return site.call("Mul", column, site.operand(site.get("other"), site.dtype))


def common(*args: Arg) -> torch.dtype:
    """What torch computes in, given these."""
    dtypes = [arg.dtype for arg in args if isinstance(arg, Operand)]
    found = dtypes[0] if dtypes else torch.int64
    for dtype in dtypes[1:]:
        found = torch.promote_types(found, dtype)
    is_float = any(isinstance(arg, float) for arg in args) and not found.is_floating_point
    if found is torch.bool and any(is_size(arg) for arg in args):
        found = torch.int64
    return torch.float32 if is_float else found


def _compared(op: str, negated: bool = False) -> Form:
    def form(site: Site) -> ir.Value:
        args = (site.get("x"), site.get("other"))
        dtype = common(*args)
        dtype = torch.int32 if dtype is torch.bool and op != "Equal" else dtype
        made = site.call(op, *(site.operand(arg, dtype) for arg in args))
        return site.call("Not", made) if negated else made

    return form


def _logical(op: str) -> Form:
    def form(site: Site) -> ir.Value:
        args = (site.get("x"), site.get("other"))
        name = op if site.dtype is torch.bool else f"Bitwise{op}"
        return site.call(name, *(site.operand(arg, site.dtype) for arg in args[: 1 if op == "Not" else 2]))

    return form


def where(site: Site) -> ir.Value:
    yes, no = (site.operand(site.get(name), site.dtype) for name in ("x", "other"))
    return site.call("Where", site.operand(site.get("condition"), torch.bool), yes, no)


def masked_fill(site: Site) -> ir.Value:
    mask = site.operand(site.get("mask"), torch.bool)
    return site.call("Where", mask, site.operand(site.get("value"), site.dtype), site.operand(site.get("x"), site.dtype))


def floor_divide(site: Site) -> ir.Value:
    x, other = (site.operand(site.get(name), torch.float64) for name in ("x", "other"))
    return site.graph.cast(site.call("Floor", site.call("Div", x, other)), site.dtype)


def remainder(site: Site) -> ir.Value:
    """x - floor(x / y) * y, as Python's %; of integers ONNX's Mod is the same."""
    x, other = (site.operand(site.get(name), site.dtype) for name in ("x", "other"))
    if not site.dtype.is_floating_point:
        return site.call("Mod", x, other)
    return site.call("Sub", x, site.call("Mul", site.call("Floor", site.call("Div", x, other)), other))


def fmod(site: Site) -> ir.Value:
    return site.call("Mod", *(site.operand(site.get(name), site.dtype) for name in ("x", "other")), fmod=1)


def power(site: Site) -> ir.Value:
    """The base in the dtype of the result; where a number is the base, its exponent is the tensor."""
    return site.call("Pow", site.operand(site.get("x"), site.dtype), site.operand(site.get("exponent"), site.dtype))


def einsum(site: Site) -> ir.Value:
    parts = site.get("operands")
    assert isinstance(parts, list)
    return site.call("Einsum", *(site.operand(part, site.dtype) for part in parts), equation=site.text("equation"))


FORMS: dict[str, Form] = {
    "outer": outer,
    "add": _sum("Add"), "sub": _sum("Sub"), "mul": _binary("Mul"), "div": _binary("Div"), "matmul": _binary("MatMul"),
    "maximum": _binary("Max"), "minimum": _binary("Min"), "pow": power, "remainder": remainder, "fmod": fmod,
    "floor_divide": floor_divide, "where": where, "masked_fill": masked_fill, "einsum": einsum,
    "eq": _compared("Equal"), "ne": _compared("Equal", negated=True), "lt": _compared("Less"), "le": _compared("LessOrEqual"),
    "gt": _compared("Greater"), "ge": _compared("GreaterOrEqual"),
    "and": _logical("And"), "or": _logical("Or"), "xor": _logical("Xor"), "not": _logical("Not"),
}  # fmt: skip
