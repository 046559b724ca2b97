"""A result that is read in parts of unlike range gets a scale for each part: gates of one linear, queries and keys, boxes and scores.

One step for all parts is the step of the largest: where the parts differ by 100, the small one has two or three codes left. An op with a
weight has a scale for each output channel at no cost, so the channels of part i are made larger by k_i = (range of all) / (range of i),
and the part, once it is cut off, is multiplied by 1 / k_i. Real values stay as they are:

    y[c] = sum(x * W[c]) + b[c]   ->   y'[c] = sum(x * k_i W[c]) + k_i b[c],  part_i = cut_i(y') * (1 / k_i)

In integers the codes of W do not change, their scales do, and the product keeps the codes of the part: its scale is s / k_i. Parts
within WORTH of the largest stay as they are. Weights that other ops use as well, and bounds other than 0, are left alone (ops/parts.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.attributes import attribute, set_attribute
from qcompiler.ir.groups import members_of
from qcompiler.ir.readers import Readers
from qcompiler.ir.types import QUANT, SOURCE, VALUE, QParams, Quant, Stage, quant_of, source_of, value_of
from qcompiler.ops.functional import mul
from qcompiler.ops.parts import Part, parts_of

NAME = "scale_parts"
Members = dict[int, list[fx.Node]]  # of groups, by their numbers
WORTH = 2.0  # one bit: what a part gains at least where it gets a scale of its own


@dataclass(frozen=True)
class ScaleParts:
    name: str = NAME
    stage: Stage = Stage.OBSERVED
    required: bool = True  # share_qparams kept the parts apart: here they get scales that one kernel can give, or a common one

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        with Readers(gm):
            found = [(node, parts_of(gm, node, context.table)) for node in gm.graph.nodes if _has_weight(node, context)]
        apart = [(node, parts) for node, parts in found if parts and _are_apart(node, parts)]
        members = members_of(gm.graph) if apart else {}
        for node, parts in apart:
            _settle(gm, node, parts, members, context)
        return bool(apart)


def _has_weight(node: fx.Node, context: Context) -> bool:
    row = context.table.of(node)
    return row is not None and row.weight is not None and quant_of(node).int8


def _are_apart(node: fx.Node, parts: tuple[Part, ...]) -> bool:
    """Whether each part has qparams of its own, in the same integers as the others."""
    known = [quant_of(first).qparams for part in parts for first in part.nodes]
    return quant_of(node).qparams is not None and all(p is not None and isinstance(p.scale, float) for p in known)


def _settle(gm: fx.GraphModule, node: fx.Node, parts: tuple[Part, ...], members: Members, context: Context) -> None:
    ranges = [_range(part) for part in parts]
    widest = max(max(-low, high) for low, high in ranges)
    factors = [_factor(widest, low, high) for low, high in ranges]
    if any(k > 1 for k in factors) and not context.allows("scale_parts", node):
        context.remark(NAME, "held-back", "its parts could have scales of their own, but that was held back", node)
        factors = [1.0] * len(parts)
    common = _common(node, parts, ranges, factors)
    for part, k in zip(parts, factors, strict=True):
        for first in part.nodes:
            (_scaled if k > 1 else _joined)(gm, first, k, common, quant_of(node).group, members)
    for member in members[quant_of(node).group]:  # type: ignore[index]
        member.meta[QUANT] = quant_of(member).with_(qparams=common)
    if any(k > 1 for k in factors):
        context.journal.matches += 1
        _scale_channels(gm, node, parts, factors)
        text = f"its {len(parts)} parts have scales of their own: 1 to 1/{max(factors):.3g} of the largest"
        context.remark(NAME, "parts", text, node)


def _range(part: Part) -> tuple[float, float]:
    """The real values of a part, of all nodes that it is first held by."""
    known = [p.range for p in (quant_of(node).qparams for node in part.nodes) if p is not None]
    return min(low for low, _ in known), max(high for _, high in known)


def _factor(widest: float, low: float, high: float) -> float:
    own = max(-low, high)
    return widest / own if own > 0 and widest / own >= WORTH else 1.0


def _common(node: fx.Node, parts: tuple[Part, ...], ranges: list[tuple[float, float]], factors: list[float]) -> QParams:
    """Qparams that hold every part times its factor, in the fewest codes that one of them may have."""
    known = [p for p in (quant_of(n).qparams for n in (node, *(n for part in parts for n in part.nodes))) if p is not None]
    whole, narrow = known[0], min(known, key=lambda p: p.quant_max - p.quant_min)
    if max(factors) == 1:  # what was observed of the whole: the ranges of parts are wider by what their zero points were rounded
        if whole.quant_max - whole.quant_min == narrow.quant_max - narrow.quant_min:
            return whole
        ranges, factors = [whole.range], [1.0]
    low = min(low * k for (low, _), k in zip(ranges, factors, strict=True))
    high = max(high * k for (_, high), k in zip(ranges, factors, strict=True))
    scale = (high - low) / (narrow.quant_max - narrow.quant_min)
    return replace(narrow, scale=scale, zero_point=narrow.quant_min - round(low / scale))


def _joined(gm: fx.GraphModule, first: fx.Node, k: float, common: QParams, group: int | None, members: Members) -> None:
    """A part on the producer's scale joins its group."""
    own = quant_of(first).group
    for member in members[own] if own is not None and own != group else ():
        member.meta[QUANT] = quant_of(member).with_(qparams=common, group=group)


def _scaled(gm: fx.GraphModule, first: fx.Node, k: float, common: QParams, group: int | None, members: Members) -> None:
    """part -> part * (1 / k): the cut has the producer's qparams, the product, which takes its place, those of the part."""
    assert isinstance(common.scale, float)
    own, users = quant_of(first).group, list(first.users)
    with gm.graph.inserting_after(first):
        product = gm.graph.create_node("call_function", mul, (first, 1 / k), name=f"{first.name}_part")
    source = source_of(first)
    product.meta[VALUE], product.meta[SOURCE] = value_of(first), replace(source, origin=source.origin or (first.name,))
    for user in users:
        user.replace_input_with(first, product)
    qparams = replace(common, scale=common.scale * (1 / k))
    for member in members[own] if own is not None else ():
        member.meta[QUANT] = quant_of(member).with_(qparams=qparams)
    product.meta[QUANT] = Quant(int8=True, qparams=qparams, group=own, qconfig=quant_of(first).qconfig)
    first.meta[QUANT] = quant_of(first).with_(qparams=common, group=group)


def _scale_channels(gm: fx.GraphModule, node: fx.Node, parts: tuple[Part, ...], factors: list[float]) -> None:
    """The factors go into the weight and the bias; what holds enlarged values is no value of the model's."""
    for first in (first for part, k in zip(parts, factors, strict=True) if k > 1 for first in part.nodes):
        while first is not node:
            first.meta[SOURCE] = replace(source_of(first), origin=(f"{first.name}_larger",))
            first = first.args[0]  # type: ignore[assignment]
    node.meta[SOURCE] = replace(source_of(node), origin=(f"{node.name}_larger",))
    for tensor in node.args[1:3]:
        if not isinstance(tensor, fx.Node):
            continue
        value = attribute(gm, str(tensor.target)).detach().clone()
        for part, k in zip(parts, factors, strict=True):
            value[torch.tensor(part.channels)] *= k
        set_attribute(gm, str(tensor.target), value)
