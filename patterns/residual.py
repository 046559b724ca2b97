"""add behind a convolution, as one op: add(conv(x), other) -> conv2d_add(x, other).

The sum is rounded once instead of twice, and no kernel of its own reads and writes it. For back ends with a kernel that adds.
"""

from __future__ import annotations

from torch import fx

from qcompiler.compile.rewrite import Link, Match, Reject, Rule, merged_source
from qcompiler.ir.types import QUANT, SOURCE, quant_of, source_of, value_of
from qcompiler.ops import functional as Q

KEPT = ("stride", "padding", "dilation", "groups", "padding_mode", "bounds")


def _can_add(match: Match, conv: fx.Node, total: fx.Node, other: object) -> None:
    if other is conv:
        raise Reject("itself", "both summands are one value")
    if match.row(conv).fn is not Q.conv2d:
        raise Reject("own-row", "the row of conv2d is not the built-in one")
    if not (quant_of(conv).int8 and quant_of(total).int8):
        raise Reject("float", "one of the two stays float")
    if quant_of(conv).qconfig != quant_of(total).qconfig:
        raise Reject("other-qconfig", "the convolution and the sum have different qconfigs")
    if total.kwargs.get("alpha", 1) != 1:
        raise Reject("alpha", "its second summand is multiplied")
    if conv.kwargs.get("bounds") is not None:
        raise Reject("clamp-between", "a clamp stands between the two")
    shape = value_of(conv).shape
    if not isinstance(other, fx.Node) or shape is None or any(value_of(n).shape != shape for n in (other, total)):
        raise Reject("broadcast", "the summands differ in shape")


def _add_inside(match: Match, conv: fx.Node, total: fx.Node, other: fx.Node) -> None:
    x, weight, bias = (*conv.args, None)[:3]
    name, base, quant = conv.name, source_of(conv), quant_of(total)
    settings = {k: v for k, v in {**conv.kwargs, **total.kwargs}.items() if k in KEPT and v is not None}
    joined = match.call(Q.conv2d_add, x, weight, bias, other, **settings)
    joined.meta |= {SOURCE: merged_source(match.nodes, base), QUANT: quant}
    joined.name = name


RULE = Rule("add_inside", (Link("conv", ("conv2d",)), Link("total", ("add",), ("conv", "other"))), _add_inside, check=_can_add)
