"""add, sub, mul, div, maximum and minimum of two values, and the joins cat and stack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from qcompiler.backends.torch.runtime import floats
from qcompiler.backends.torch.runtime import functions as runtime
from qcompiler.backends.torch.site import ENGINES, Emit, Kernel, Operand, Site, finish, needs_relu
from qcompiler.ir.types import value_of

OPS = torch.ops.quantized
NATIVE: dict[str, tuple[Any, Any]] = {"add": (OPS.add.default, OPS.add_relu.default), "mul": (OPS.mul.default, OPS.mul_relu.default)}
FLOAT: dict[str, Any] = {"add": floats.add_float, "sub": floats.sub_float, "mul": floats.mul_float, "div": floats.div_float,
                         "maximum": floats.maximum_float, "minimum": floats.minimum_float}  # fmt: skip


def other(site: Site) -> Any:
    return site.args[1] if len(site.args) > 1 else site.get("other")


def _order(site: Site) -> tuple[Any, Any] | None:
    """The operands, first the one that has the result's shape: torch allocates the result like the first operand and
    warns when it must resize it. None where both are broadcast.
    """
    left, right, result = site.shape(0), site.shape(1), value_of(site.node).shape
    if left is None or right is None or result in (None, left):
        return site.args[0], other(site)
    return (other(site), site.args[0]) if result == right else None


def _fits_qnnpack(site: Site) -> Callable[[object], bool]:
    """Whether an operand's scale, against the result's, is one that qnnpack's add is made for (it raises elsewhere)."""

    def fits(operand: Any) -> bool:
        if operand.qparams is None or site.output is None:
            return True
        return bool(2.0**-14 <= operand.qparams.scale / site.scale < 2.0**8)

    return fits


def refuse_native(site: Site) -> str | None:
    if not isinstance(site.args[0], Operand) or not isinstance(other(site), Operand):
        return "only one operand is quantized"
    if _order(site) is None:
        return "both operands are broadcast"
    if site.engine == "qnnpack" and site.op.name == "add" and not all(map(_fits_qnnpack(site), (site.args[0], other(site)))):
        return "qnnpack adds scales of 2 ** -14 up to 2 ** 8 times the result's alone"
    return "alpha: torch's int8 add has none" if site.get("alpha", 1) != 1 else None


def emit_native(site: Site, emit: Emit) -> fx.Node:
    plain, relu = NATIVE[site.op.name]
    first, second = _order(site) or (site.args[0], other(site))
    with_relu = needs_relu(site)
    result = emit.call(relu if with_relu else plain, first, second, site.scale, site.zero_point)
    return finish(site, emit, result, relu_done=with_relu)


def refuse_tensors(site: Site) -> str | None:
    tensor = all(isinstance(a, (Operand, fx.Node)) for a in (site.args[0], other(site)))
    return None if tensor and isinstance(site.args[0], Operand) else "an operand is not a tensor"


def emit_tensors(site: Site, emit: Emit) -> fx.Node:
    """The second operand is quint8 or a float tensor. Where order does not matter the large one stands first: the result
    gets its memory layout, and a (N, C, 1, 1) one has none of its own.
    """
    alpha = (float(site.get("alpha", 1)),) if site.op.name in ("add", "sub") else ()
    first, second = site.args[0], other(site)
    if site.op.name in ("add", "mul") and site.get("alpha", 1) == 1 and isinstance(second, Operand):
        first, second = _order(site) or (first, second)
    result = emit.call(FLOAT[site.op.name], first, second, *alpha, site.scale, site.zero_point)
    return finish(site, emit, result)


def refuse_swapped(site: Site) -> str | None:
    left = isinstance(site.args[0], fx.Node) and isinstance(other(site), Operand)
    return None if left and site.get("alpha", 1) == 1 else "not a float tensor and a quantized one"


def emit_swapped(site: Site, emit: Emit) -> fx.Node:
    """A float tensor on the left of an op that is the same either way."""
    alpha = (1.0,) if site.op.name == "add" else ()
    return finish(site, emit, emit.call(FLOAT[site.op.name], other(site), site.args[0], *alpha, site.scale, site.zero_point))


def affine(site: Site) -> tuple[float, float] | None:
    """(factor, offset) with result = x * factor + offset, where the other operand is a number."""
    left, right, alpha = site.args[0], other(site), float(site.get("alpha", 1))
    number = isinstance(right, (int, float)) if isinstance(left, Operand) else isinstance(left, (int, float)) and isinstance(right, Operand)
    if not number:
        return None
    value = float(right if isinstance(left, Operand) else left)
    swapped = not isinstance(left, Operand)
    if site.op.name == "add":
        return (alpha, value) if swapped else (1.0, alpha * value)
    if site.op.name == "sub":
        return (-alpha, value) if swapped else (1.0, -alpha * value)
    if site.op.name == "mul":
        return value, 0.0
    return None if swapped or value == 0 else (1.0 / value, 0.0)


def refuse_scalar(site: Site) -> str | None:
    return None if affine(site) is not None else "no operand is a number"


def emit_scalar(site: Site, emit: Emit) -> fx.Node:
    factor, offset = affine(site) or (1.0, 0.0)
    x = site.args[0] if isinstance(site.args[0], Operand) else other(site)
    return finish(site, emit, emit.call(floats.affine_float, x, factor, offset, site.scale, site.zero_point))


def refuse_relabelled(site: Site) -> str | None:
    """A positive factor that the output's scale has as well changes no code."""
    factor, offset = affine(site) or (0.0, 0.0)
    x = site.args[0]
    if offset or factor <= 0 or not isinstance(x, Operand) or x.qparams is None or site.get("bounds") is not None:
        return "it is no product of a value and a positive number"
    same = isinstance(x.qparams.scale, float) and x.qparams.scale * factor == site.scale and x.qparams.zero_point == site.zero_point
    return None if same else "the output has qparams of its own"


def emit_relabelled(site: Site, emit: Emit) -> fx.Node:
    factor, _ = affine(site) or (1.0, 0.0)
    return finish(site, emit, emit.call(OPS.mul_scalar.default, site.args[0], factor))


def refuse_reciprocal(site: Site) -> str | None:
    ok = isinstance(site.args[0], (int, float)) and isinstance(other(site), Operand)
    return None if ok else "not a number divided by a tensor"


def emit_reciprocal(site: Site, emit: Emit) -> fx.Node:
    result = emit.call(floats.reciprocal_float, other(site), float(site.args[0]), site.scale, site.zero_point)
    return finish(site, emit, result)


def refuse_join(site: Site) -> str | None:
    return None if site.args[0] and all(isinstance(a, Operand) for a in site.args[0]) else "not all its inputs are quantized"


def _same_scale(site: Site) -> bool:
    mapping = (site.output.scale, site.output.zero_point)
    return all(a.qparams is not None and (a.qparams.scale, a.qparams.zero_point) == mapping for a in site.args[0])


def _dim(site: Site) -> int:
    return int(site.args[1] if len(site.args) > 1 else site.get("dim", 0))


def emit_cat(site: Site, emit: Emit) -> fx.Node:
    """A plain copy where all share the output's qparams, else each input is requantized on the way."""
    inputs, dim = list(site.args[0]), _dim(site)
    if _same_scale(site):
        return finish(site, emit, emit.call(torch.ops.aten.cat.default, inputs, dim))
    return finish(site, emit, emit.call(OPS.cat.default, inputs, dim, site.scale, site.zero_point))


def emit_stack(site: Site, emit: Emit) -> fx.Node:
    inputs, dim = list(site.args[0]), _dim(site)
    if _same_scale(site):
        return finish(site, emit, emit.call(torch.ops.aten.stack.default, inputs, dim))
    return finish(site, emit, emit.call(runtime.stack, inputs, dim, site.scale, site.zero_point))


KERNELS = (
    *(Kernel(op, ENGINES, emit_native, refuse_native) for op in ("add", "mul")),
    Kernel("mul", ENGINES, emit_relabelled, refuse_relabelled),
    *(Kernel(op, ENGINES, emit_scalar, refuse_scalar) for op in ("add", "sub", "mul", "div")),
    *(Kernel(op, ENGINES, emit_tensors, refuse_tensors, note="float arithmetic") for op in FLOAT),
    *(Kernel(op, ENGINES, emit_swapped, refuse_swapped, note="float arithmetic") for op in ("add", "mul", "maximum", "minimum")),
    Kernel("div", ENGINES, emit_reciprocal, refuse_reciprocal, note="float arithmetic"),
    Kernel("cat", ENGINES, emit_cat, refuse_join),
    Kernel("stack", ENGINES, emit_stack, refuse_join),
)
