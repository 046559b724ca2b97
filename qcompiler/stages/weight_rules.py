"""Rules of QUANTIZED for what an op is made with: integer weights, float biases, bounds, modes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, fx

from qcompiler.ir.attributes import attribute
from qcompiler.ir.check_qparams import zero_point_fault
from qcompiler.ir.types import Mode, Stage, quant_of, value_of
from qcompiler.ops.reference import dequantize_weight, dynamic_quantize_dequantize, unpack_4bit, widen
from qcompiler.ops.spec import CONVOLUTIONS, Family, Role
from qcompiler.stages.rule import Place, Rule, flat

WEIGHTED = (*CONVOLUTIONS, Family.LINEAR)
PARTS = (dequantize_weight, widen, unpack_4bit)  # what stands before weights


def _given(at: Place, *roles: Role) -> Iterator[fx.Node]:
    """The nodes that an op is given in these roles."""
    for param, arg in zip(at.row.params if at.row is not None else (), at.node.args, strict=False):
        if param.role in roles:
            yield from (part for part in flat(arg) if isinstance(part, fx.Node))


def _is_quantized(at: Place) -> bool:
    return at.row is not None and (at.quant.int8 or at.quant.mode is not None)


def weights(at: Place) -> str | None:
    """What an op takes as weights; the codes behind them are another rule's."""
    for given in _given(at, Role.WEIGHT, Role.WEIGHTS):
        fault = _of_mode(at, given) if _is_quantized(at) else _of_float_op(given)
        if fault is not None:
            return f"the weight %{given.name} of %{at.node.name} {fault}"
    missing = _is_quantized(at) and at.row is not None and at.row.weight is not None and not any(_given(at, Role.WEIGHT, Role.WEIGHTS))
    return f"%{at.node.name} has no weight" if missing else None


def _of_float_op(given: fx.Node) -> str | None:
    dtype = value_of(given).dtype
    return f"is {dtype}, and the op computes in float" if dtype in (torch.int8, torch.uint8) else None


def _of_mode(at: Place, given: fx.Node) -> str | None:
    if at.quant.mode is Mode.HALF:
        tensor = _tensor(at.gm, given.args[0]) if given.target is widen else None
        return None if tensor is not None and tensor.dtype is torch.float16 else "is no float16 parameter behind widen"
    if given.target is not dequantize_weight:
        return "does not stand behind dequantize_weight"
    held, axis = given.args[0], given.args[3] if len(given.args) > 3 else None
    packed = isinstance(held, fx.Node) and held.target is unpack_4bit
    if packed != (at.quant.mode is Mode.FOUR_BIT):
        return "is packed in 4 bits" if packed else "is not packed in 4 bits, as its mode says"
    dtype, zero_point = (value_of(part).dtype if isinstance(part, fx.Node) else None for part in (held, given.args[2]))
    if at.quant.mode in (None, Mode.DYNAMIC) and (dtype is not torch.int8 or zero_point is not torch.int64):
        return f"has codes of {dtype} and zero points of {zero_point}, not int8 and int64"
    if axis not in (None, at.row.weight_axis if at.row is not None else 0):
        return f"has scales along dimension {axis}, which is not that of the channels"
    return None


def codes(at: Place) -> str | None:
    """The parameters behind a weight, whichever op reads it."""
    fault = _codes(at) if at.node.target is dequantize_weight else _packed(at) if at.node.target is unpack_4bit else None
    return f"the weight %{at.node.name} {fault}" if fault is not None else None


def _codes(at: Place) -> str | None:
    if len(at.node.args) not in (3, 4) or at.node.kwargs:
        return "does not give codes, scale, zero point and dimension in order"
    held, axis = at.node.args[0], at.node.args[3] if len(at.node.args) > 3 else None
    packed = isinstance(held, fx.Node) and held.target is unpack_4bit
    codes, scale, zero_point = (_tensor(at.gm, part) for part in (held.args[0] if packed else held, *at.node.args[1:3]))  # type: ignore[union-attr]
    if codes is None or scale is None or zero_point is None:
        return "is not made of three parameters: codes, scale and zero point"
    if codes.dtype not in (torch.int8, torch.uint8):
        return f"has codes of {codes.dtype}"
    shape = at.value.shape
    if shape is None or (not packed and shape != codes.shape):
        return f"has codes of shape {tuple(codes.shape)}, and is noted as {shape}"
    if axis is not None and not (isinstance(axis, int) and 0 <= axis < len(shape)):
        return f"has scales along dimension {axis}, which is not that of the channels"
    return _scales(1 if axis is None else shape[axis], codes, scale, zero_point)


def _packed(at: Place) -> str | None:
    tensor, columns = _tensor(at.gm, at.node.args[0]), at.node.args[1] if len(at.node.args) > 1 else None
    if tensor is None or tensor.dtype is not torch.uint8 or tensor.dim() != 2 or not isinstance(columns, int):
        return "is not unpacked from rows of uint8"
    fits = (columns + 1) // 2 == tensor.shape[1] and at.value.shape == (tensor.shape[0], columns)
    return None if fits else f"is noted as {at.value.shape}, and {columns} columns are read from {tuple(tensor.shape)}"


def as_held(at: Place) -> str | None:
    """The note of a parameter that a quantized op reads, itself or through what stands before weights."""
    if at.node.op != "get_attr" or not any(user.target in PARTS or quant_of(user).int8 or quant_of(user).mode for user in at.node.users):
        return None
    tensor = _tensor(at.gm, at.node)
    if tensor is None or (at.value.shape, at.value.dtype) == (tensor.shape, tensor.dtype):
        return None
    return f"%{at.node.name} is {tensor.dtype}{list(tensor.shape)}, and noted as {at.value.dtype}{list(at.value.shape or ())}"


def channels(at: Place) -> str | None:
    """The channels that a convolution or linear takes and gives are those of its weight."""
    row = at.row
    if row is None or row.family not in WEIGHTED or not _is_quantized(at) or row.weight is None:
        return None
    groups, place = at.node.kwargs.get("groups", 1), -1 - (row.dims or 0)
    given, weight, made = (
        value_of(n).shape if isinstance(n, fx.Node) else None for n in (at.node.args[0], at.node.args[row.weight], at.node)
    )
    if given is None or weight is None or made is None or not isinstance(groups, int):
        return None
    sides = (weight[1] * groups, weight[0]) if row.weight_axis == 0 else (weight[0], weight[1] * groups)
    fits = (given[place], made[place]) == sides and groups > 0 and weight[0] % groups == 0
    return None if fits else f"%{at.node.name} takes {given} and gives {made}, with a weight of {weight} in {groups} groups"


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
    least, most = (-math.inf if low is None else low), (math.inf if high is None else high)
    holds = least <= most and least < math.inf and most > -math.inf  # type: ignore[operator]
    return None if holds else f"%{at.node.name}: the bounds {given} hold no number"


def modes(at: Place) -> str | None:
    if at.quant.mode is None or at.row is None:
        return None
    if not any(_given(at, Role.WEIGHT, Role.WEIGHTS)):
        return f"%{at.node.name} has the mode {at.quant.mode.value} and no weight"
    return None


def rounds_at_run_time(at: Place) -> str | None:
    rounded = [given for given in _given(at, Role.ACTIVATION) if given.target is dynamic_quantize_dequantize]
    if at.row is None or at.quant.mode is not Mode.DYNAMIC:
        return f"%{at.node.name} takes %{rounded[0].name}, but is not {Mode.DYNAMIC.value}" if rounded else None
    first = at.node.args[0]
    if at.row.rounds_inside:
        given = at.node.kwargs.get("activation_range")
        lacks = "activation_range to round to at every step"
    else:
        given = first.args[1:] if isinstance(first, fx.Node) and first.target is dynamic_quantize_dequantize else None
        lacks = "input that is rounded at run time"
    if not isinstance(given, tuple):
        return f"%{at.node.name} is {Mode.DYNAMIC.value}, and has no {lacks}"
    return None if _is_range(given) else f"%{at.node.name} rounds at run time to {given}, which is no range of 8 bits"


def _is_range(given: tuple[object, ...]) -> bool:
    """Whether this is (quant_min, quant_max) of codes in 8 bits."""
    low, high = given if len(given) == 2 else (None, None)
    return isinstance(low, int) and isinstance(high, int) and low < high and any(a <= low and high <= b for a, b in ((0, 255), (-128, 127)))


STAGES = (Stage.QUANTIZED,)
RULES = (
    Rule("ir-weight", "Codes of a weight are int8, or uint8 where its mode allows, with scales and zero points for all or one dimension.",
         STAGES, codes),
    Rule("ir-value", "A parameter that a quantized op reads is noted as it is held.", STAGES, as_held),
    Rule("ir-value", "A convolution or linear takes and gives the channels of its weight.", STAGES, channels),
    Rule("ir-weight", "A weight is an int8 parameter behind dequantize_weight; a float op has no integers as a weight.",
         STAGES, weights),
    Rule("ir-bias", "A bias is float32.", STAGES, biases),
    Rule("ir-bounds", "Bounds are a pair of numbers or None, at an op whose row takes them.",
         (Stage.FUSED, Stage.OBSERVED, Stage.QUANTIZED), bounds),
    Rule("ir-mode", "A mode belongs to an op with weights.", (Stage.OBSERVED, Stage.QUANTIZED), modes),
    Rule("ir-mode", "An int8 dynamic op, and no other, rounds its input at run time.", STAGES, rounds_at_run_time),
)  # fmt: skip
