"""Rules of QUANTIZED for what an op is made with: integer weights, float biases, bounds, modes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from qcompiler.ir.attributes import attribute
from qcompiler.ir.check_qparams import zero_point_fault
from qcompiler.ir.types import Mode, Stage, value_of
from qcompiler.ops.reference import dequantize_weight, dynamic_quantize_dequantize, unpack_4bit, widen
from qcompiler.ops.spec import Role
from qcompiler.stages.rule import Place, Rule, flat


def _given(at: Place, *roles: Role) -> Iterator[fx.Node]:
    """The nodes that an op is given in these roles."""
    for param, arg in zip(at.row.params if at.row is not None else (), at.node.args, strict=False):
        if param.role in roles:
            yield from (part for part in flat(arg) if isinstance(part, fx.Node))


def _is_quantized(at: Place) -> bool:
    return at.row is not None and (at.quant.int8 or at.quant.mode is not None)


def weights(at: Place) -> str | None:
    if not _is_quantized(at):
        return None
    for given in _given(at, Role.WEIGHT, Role.WEIGHTS):
        fault = _half(at, given) if at.quant.mode is Mode.HALF else _codes(at, given)
        if fault is not None:
            return f"the weight %{given.name} of %{at.node.name} {fault}"
    missing = at.row is not None and at.row.weight is not None and not any(_given(at, Role.WEIGHT, Role.WEIGHTS))
    return f"%{at.node.name} has no weight" if missing else None


def _half(at: Place, given: fx.Node) -> str | None:
    held = given.args[0] if given.target is widen else None
    tensor = _tensor(at.gm, held)
    return None if tensor is not None and tensor.dtype is torch.float16 else "is no float16 parameter behind widen"


def _codes(at: Place, given: fx.Node) -> str | None:
    if given.target is not dequantize_weight or len(given.args) < 3:
        return "does not stand behind dequantize_weight"
    held, axis = given.args[0], given.args[3] if len(given.args) > 3 else None
    packed = isinstance(held, fx.Node) and held.target is unpack_4bit
    if packed != (at.quant.mode is Mode.FOUR_BIT):
        return "is packed in 4 bits" if packed else "is not packed in 4 bits, as its mode says"
    codes, scale, zero_point = (_tensor(at.gm, part) for part in (held.args[0] if packed else held, *given.args[1:3]))  # type: ignore[union-attr]
    if codes is None or scale is None or zero_point is None:
        return "is not made of three parameters: codes, scale and zero point"
    wanted = (torch.int8,) if at.quant.mode in (None, Mode.DYNAMIC) else (torch.int8, torch.uint8)
    if codes.dtype not in wanted:
        return f"has codes of {codes.dtype}"
    shape = value_of(given).shape
    if shape is None or (not packed and shape != codes.shape):
        return f"has codes of shape {tuple(codes.shape)}, and is noted as {shape}"
    if axis not in (None, at.row.weight_axis if at.row is not None else 0) or (isinstance(axis, int) and axis >= len(shape)):
        return f"has scales along dimension {axis}, which is not that of the channels"
    return _scales(1 if not isinstance(axis, int) else shape[axis], codes, scale, zero_point)


def _scales(count: int, codes: Tensor, scale: Tensor, zero_point: Tensor) -> str | None:
    if scale.shape != (count,) or zero_point.shape != (count,):
        return f"has {tuple(scale.shape)} scales and {tuple(zero_point.shape)} zero points for {count}"
    if scale.dtype is not torch.float64 or not bool((torch.isfinite(scale) & (scale > 0)).all()):
        return f"has scales that are not finite, above 0 and float64 ({scale.dtype})"
    fault = zero_point_fault(zero_point, codes.dtype)
    return f"has a wrong zero point: {fault}" if fault else None


def _tensor(gm: fx.GraphModule, node: object) -> Tensor | None:
    """The parameter that a node reads; None for any other node."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    held = attribute(gm, str(node.target))
    return held if isinstance(held, Tensor) else None


def biases(at: Place) -> str | None:
    if not _is_quantized(at):
        return None
    for given in _given(at, Role.BIAS):
        if value_of(given).dtype not in (torch.float32, None):
            return f"%{given.name} of %{at.node.name} is {value_of(given).dtype}; a bias stays float32"
    return _bias_length(at)


def _bias_length(at: Place) -> str | None:
    """A convolution or linear adds one number to each of its output channels."""
    row, position = at.row, next((i for i, p in enumerate(at.row.params if at.row is not None else ()) if p.name == "bias"), None)
    bias = at.node.args[position] if position is not None and position < len(at.node.args) else None
    if row is None or row.weight is None or not isinstance(bias, fx.Node):
        return None
    weight = value_of(at.node.args[row.weight]).shape or ()  # type: ignore[arg-type]
    groups = at.node.kwargs.get("groups", 1) if row.weight_axis else 1
    wanted, shape = (weight[row.weight_axis] * groups,) if weight else (), value_of(bias).shape  # type: ignore[operator]
    return None if shape in (None, wanted) else f"the bias %{bias.name} of %{at.node.name} is {shape} for {wanted} channels"


def bounds(at: Place) -> str | None:
    given = at.node.kwargs.get("bounds") if at.row is not None else None
    if given is None:
        return None
    if at.row is not None and not at.row.takes_bounds:
        return f"%{at.node.name}: {at.row.name} takes no bounds"
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        return f"%{at.node.name}: bounds are a pair, not {given}"
    low, high = given
    if not all(side is None or isinstance(side, (int, float)) for side in given) or low != low or high != high:
        return f"%{at.node.name}: bounds are numbers or None, not {given}"
    ordered = low is None or high is None or low <= high  # type: ignore[operator]
    return None if ordered else f"%{at.node.name}: the bounds {given} hold no number"


def modes(at: Place) -> str | None:
    if at.quant.mode is None or at.row is None:
        return None
    if not any(_given(at, Role.WEIGHT, Role.WEIGHTS)):
        return f"%{at.node.name} has the mode {at.quant.mode.value} and no weight"
    if at.quant.qparams is not None and at.quant.int8:
        return f"%{at.node.name} has a mode, so it takes and gives floats"
    return None


def rounds_at_run_time(at: Place) -> str | None:
    rounded = [given for given in _given(at, Role.ACTIVATION) if given.target is dynamic_quantize_dequantize]
    if at.row is None or at.quant.mode is not Mode.DYNAMIC:
        return f"%{at.node.name} takes %{rounded[0].name}, but is not {Mode.DYNAMIC.value}" if rounded else None
    if at.row.rounds_inside:
        given = at.node.kwargs.get("activation_range")
        return None if isinstance(given, tuple) else f"%{at.node.name} has no activation_range to round to at every step"
    first = at.node.args[0]
    inside = isinstance(first, fx.Node) and first.target is dynamic_quantize_dequantize
    return None if inside else f"%{at.node.name} is {Mode.DYNAMIC.value}, but its input is not rounded at run time"


STAGES = (Stage.QUANTIZED,)
RULES = (
    Rule("ir-weight", "A weight is an int8 parameter behind dequantize_weight, with float64 scales along one dimension or for all.",
         STAGES, weights),
    Rule("ir-bias", "A bias is float32.", STAGES, biases),
    Rule("ir-bounds", "Bounds are a pair of numbers or None, at an op whose row takes them.",
         (Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED), bounds),
    Rule("ir-mode", "A mode belongs to an op with weights.", (Stage.OBSERVED, Stage.QUANTIZED), modes),
    Rule("ir-mode", "An int8 dynamic op, and no other, rounds its input at run time.", STAGES, rounds_at_run_time),
)  # fmt: skip
