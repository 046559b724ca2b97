"""Rules of QUANTIZED for values: integers stand between quantize and dequantize alone, int8 ops between dequantize and quantize."""

from __future__ import annotations

import torch
from torch import fx

from qcompiler.ir.types import Stage, quant_of, value_of
from qcompiler.ops.arguments import activations, asks_size
from qcompiler.ops.reference import dequantize, dequantize_weight, quantize, widen
from qcompiler.ops.spec import Output
from qcompiler.ops.stays_float import reads_sums
from qcompiler.stages.rule import Place, Rule


def gives_tuple(node: fx.Node) -> bool:
    """Whether the node is an int8 op whose result is a tuple, the parts of which are quantized one by one."""
    return quant_of(node).int8 and value_of(node).shape is None and quant_of(node).qparams is not None


def input_dequantized(at: Place) -> str | None:
    if not at.quant.int8:
        return None
    for given in activations(at.table, at.node):
        if given.target is not dequantize and not gives_tuple(given) and not reads_sums(at.node, at.table):
            return f"the int8 op %{at.node.name} takes %{given.name}, which nothing quantizes"
    return None


def result_quantized(at: Place) -> str | None:
    if not at.quant.int8 or at.quant.qparams is None or gives_tuple(at.node):
        return None
    other = next((user for user in at.node.users if user.target is not quantize), None)
    if other is not None:
        return f"%{other.name} takes the result of the int8 op %{at.node.name} before it is quantized"
    if len(at.node.users) != 1:
        return f"{len(at.node.users) or 'no'} nodes quantize the result of the int8 op %{at.node.name}, not one"
    user = next(iter(at.node.users))
    return f"%{user.name} rounds to other qparams than %{at.node.name} has" if quant_of(user).qparams != at.quant.qparams else None


def tuple_taken_apart(at: Place) -> str | None:
    if not gives_tuple(at.node):
        return None
    other = next((user for user in at.node.users if not quant_of(user).int8 and not asks_size(user)), None)
    return None if other is None else f"%{other.name} takes the tuple %{at.node.name}, whose parts are integers"


def int8_has_qparams(at: Place) -> str | None:
    if not at.quant.int8:
        return None
    if at.quant.float_output:
        return f"%{at.node.name} hands out floats, and has qparams" if at.quant.qparams is not None else None
    return f"%{at.node.name} is int8 and has no qparams" if at.quant.qparams is None else None


def integers_shaped(at: Place) -> str | None:
    if gives_tuple(at.node):
        lost = [at.node] if any(user.target is quantize for user in at.node.users) else []
    else:
        around = (at.node, at.node.args[0]) if at.node.target in (quantize, dequantize) else ()
        lost = [n for n in around if isinstance(n, fx.Node) and value_of(n).shape is None]
    return f"%{lost[0].name} is a tensor, and its shape is not noted" if lost else None


def unsigned(at: Place) -> str | None:
    p = at.quant.qparams
    return f"%{at.node.name} has codes of {p.dtype}; activations have uint8" if p is not None and p.dtype is not torch.uint8 else None


def integers_dequantized(at: Place) -> str | None:
    if at.node.target is not quantize:
        return None
    if not at.node.users:
        return f"nothing reads the integers %{at.node.name}"
    other = next((user for user in at.node.users if user.target is not dequantize), None)
    return None if other is None else f"%{other.name} takes the integers %{at.node.name} without a dequantize"


def floats_in_float32(at: Place) -> str | None:
    made = at.node.target in (dequantize, dequantize_weight, widen) or at.quant.int8
    floats = at.node.args[0] if at.node.target is quantize else at.node if made else None
    dtype = value_of(floats).dtype if isinstance(floats, fx.Node) else None
    return None if not isinstance(floats, fx.Node) or dtype in (None, torch.float32) else f"%{floats.name} is {dtype}, not float32"


def conversion(at: Place) -> str | None:
    """A quantize or dequantize uses the qparams and type that are noted at its integers."""
    if at.node.target not in (quantize, dequantize):
        return None
    source = at.node.args[0]
    if not isinstance(source, fx.Node):
        return f"%{at.node.name} converts {source}, which is no node"
    integers = at.node if at.node.target is quantize else source
    p, dtype = quant_of(integers).qparams, value_of(integers).dtype
    if p is None:
        return f"%{integers.name} has integers without qparams"
    if at.node.target is dequantize and source.target is not quantize:
        return f"%{at.node.name} dequantizes %{source.name}, which is no quantize"
    wanted = (p.scale, p.zero_point, p.quant_min, p.quant_max, p.dtype)
    if at.node.kwargs or tuple(at.node.args[1:]) != wanted[: 5 if at.node.target is quantize else 2]:
        return f"%{at.node.name} uses other qparams than %{integers.name} has"
    if dtype not in (None, p.dtype):
        return f"%{integers.name} is {dtype}, its qparams are {p.dtype}"
    return None if at.value.shape == value_of(source).shape else f"%{at.node.name} has another shape than %{source.name}"


def same_qparams(at: Place) -> str | None:
    """An op that copies values copies codes."""
    if at.row is None or at.row.output is not Output.SAME or not at.quant.int8 or at.quant.qparams is None:
        return None
    first = next(activations(at.table, at.node), None)
    source = first.args[0] if first is not None and first.target is dequantize else first
    given = quant_of(source).qparams if isinstance(source, fx.Node) else None
    return None if given in (None, at.quant.qparams) else f"%{at.node.name} keeps its input's values, but has other qparams"


def group_shares(at: Place) -> str | None:
    if at.quant.group is None or at.quant.qparams is None:
        return None
    first = at.seen.groups.setdefault(at.quant.group, at.node)
    return None if quant_of(first).qparams == at.quant.qparams else f"%{at.node.name} has other qparams than %{first.name} of its group"


STAGES = (Stage.QUANTIZED,)
RULES = (
    Rule("ir-qparams", "An int8 op has qparams, unless it hands out floats.", STAGES, int8_has_qparams),
    Rule("ir-qparams", "Activations are uint8, weights int8.", STAGES, unsigned),
    Rule("ir-value", "Integers, and what they are made of and become, are tensors whose shapes are noted.", STAGES, integers_shaped),
    Rule("ir-value", "What is quantized, what an int8 op computes and what integers become is float32.", STAGES, floats_in_float32),
    Rule("ir-int8-input", "Every activation of an int8 op is a dequantize, a tuple of integers, or sums that nothing rounds.", STAGES,
         input_dequantized),
    Rule("ir-int8-output", "The result of an int8 op is read by one quantize, which has its qparams.", STAGES, result_quantized),
    Rule("ir-int8-output", "A tuple of integers is read by int8 ops alone, which take it apart.", STAGES, tuple_taken_apart),
    Rule("ir-integers", "Integers are read, by dequantizes alone.", STAGES, integers_dequantized),
    Rule("ir-conversion", "A quantize and a dequantize use the qparams, the dtype and the shape noted at the integers.", STAGES,
         conversion),
    Rule("ir-copy", "An op that keeps its input's values has its input's qparams.", STAGES, same_qparams),
    Rule("ir-group", "The values of one group have equal qparams.", (Stage.OBSERVED, *STAGES), group_shares),
)  # fmt: skip
