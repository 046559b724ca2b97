"""Depthwise convolutions behind uneven padding become centred ones of stride 1 and a slice, where fbgemm packs them (kernels/centring.py).

    pad -> quantize -> dequantize -> conv -> quantize   becomes   conv -> quantize -> dequantize -> getitem -> quantize

The values that are kept have the qparams that they had, so they are the same integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.fx.node import Target

from qcompiler.backends.torch.kernels.centring import Centring
from qcompiler.backends.torch.target import TorchTarget
from qcompiler.compile.pass_manager import Context
from qcompiler.ir.types import MACS, QUANT, SOURCE, VALUE, Quant, Stage, Value, quant_of, source_of, value_of
from qcompiler.ops.functional import getitem
from qcompiler.ops.reference import dequantize, quantize


@dataclass(frozen=True)
class CentreDepthwise:
    name: str = "centre_depthwise"
    stage: Stage = Stage.QUANTIZED
    required: bool = False
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        target, changed = TorchTarget.of(context.target), False
        for node in list(gm.graph.nodes):
            row = context.table.of(node)
            if row is None or not quant_of(node).int8 or quant_of(node).qparams is None:
                continue
            centring = target.centring(row, node, padded_by(node))
            if centring is not None and context.allows(self.name, node):
                context.journal.matches += 1
                if row.macs is not None:
                    node.meta[MACS] = row.macs(node)  # of the op, not of the positions that are computed and left out
                _centre(gm.graph, node, centring)
                changed = True
        if changed:
            gm.graph.eliminate_dead_code()
        return changed


def padded_by(conv: fx.Node) -> Any:
    """What computes a convolution's input, seen through quantize and dequantize."""
    before: Any = conv.args[0]
    for target in (dequantize, quantize):
        before = before.args[0] if isinstance(before, fx.Node) and before.target is target else before
    return before


def _centre(graph: fx.Graph, conv: fx.Node, centring: Centring) -> None:
    pad, value, quant = padded_by(conv), value_of(conv), quant_of(conv)
    x = _unpadded(graph, conv, pad)
    conv.args, conv.kwargs = (x, *conv.args[1:]), centring.settings(conv.kwargs)
    shape, before = value.shape, value_of(x).shape
    conv.meta[VALUE] = (
        Value((*shape[:2], *before[2:]), value.dtype) if shape is not None and before is not None else Value(None, value.dtype)
    )
    readers = list(conv.users)
    integers = _behind(graph, conv, quantize, _qparams_of(quant), f"{conv.name}_centred_q")
    floats = _behind(graph, integers, dequantize, _qparams_of(quant)[:2], f"{conv.name}_centred_dq")
    with graph.inserting_after(floats):
        kept = graph.create_node("call_function", getitem, (floats,), {"index": centring.index}, name=f"{conv.name}_strided")
    kept.meta[VALUE], kept.meta[SOURCE], kept.meta[QUANT] = value, source_of(conv), quant
    for made in (conv, integers, floats):
        made.meta[SOURCE] = source_of(conv)  # of one origin with what is kept: what leaves that is compared with the model
    for reader in readers:
        reader.replace_input_with(conv, kept)


def _unpadded(graph: fx.Graph, conv: fx.Node, pad: fx.Node) -> fx.Node:
    """The pad's input as the convolution takes it: behind dequantize, of the integers that the padded value has. Zeros are the zero point
    in these, so padding and rounding may change places."""
    x: Any = pad.args[0]
    if quant_of(pad).int8:
        return x  # type: ignore[no-any-return]
    given: Any = conv.args[0].args[0]  # type: ignore[union-attr]
    with graph.inserting_before(pad):
        integers = _like(graph.create_node("call_function", quantize, (x, *given.args[1:]), name=f"{conv.name}_input_q"), x, given)
        return _like(graph.create_node("call_function", dequantize, (integers, *given.args[1:3]), name=f"{conv.name}_input_dq"), x, x)


def _like(made: fx.Node, value: fx.Node, quant: fx.Node) -> fx.Node:
    made.meta[VALUE] = Value(value_of(value).shape, quant.args[5] if made.target is quantize else value_of(value).dtype)  # type: ignore[arg-type]
    made.meta[SOURCE] = source_of(value)
    if made.target is quantize:
        made.meta[QUANT] = quant_of(quant)
    return made


def _qparams_of(quant: Quant) -> tuple[Any, ...]:
    p = quant.qparams
    assert p is not None
    return p.scale, p.zero_point, p.quant_min, p.quant_max, p.dtype


def _behind(graph: fx.Graph, node: fx.Node, target: Target, arguments: tuple[Any, ...], name: str) -> fx.Node:
    with graph.inserting_after(node):
        made = graph.create_node("call_function", target, (node, *arguments), name=name)
    made.meta[VALUE] = Value(value_of(node).shape, arguments[4] if target is quantize else value_of(node.args[0]).dtype)  # type: ignore[arg-type]
    if target is quantize:
        made.meta[QUANT] = Quant(int8=False, qparams=quant_of(node).qparams)
    return made
