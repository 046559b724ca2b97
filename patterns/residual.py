"""add behind a convolution, as one op: add(conv(x), other) -> conv2d_add(x, other).

The sum is rounded once instead of twice, and no kernel of its own reads and writes it. For back ends with a kernel that adds.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from qcompiler.ir.types import QUANT, SOURCE, VALUE, quant_of, source_of, value_of
from qcompiler.ops import functional as Q
from qcompiler.rewrite import Link, Match, Reject, Rule

KEPT = ("stride", "padding", "dilation", "groups", "padding_mode")


def _split(match: Match, total: fx.Node) -> tuple[fx.Node, Any]:
    """The convolution that takes the sum in, and the other summand: the last of two, for all that it reads must be there."""
    left, right = (*total.args, None, None)[:2]
    if left is right:
        raise Reject("itself", "both summands are one value")
    pairs = [(a, b) for a, b in ((left, right), (right, left)) if isinstance(a, fx.Node) and _is_conv(match, a)]
    if not pairs:
        raise Reject("no-partner", "no 2-d convolution makes either summand")
    single = [(a, b) for a, b in pairs if len(a.users) == 1]
    if not single:
        raise Reject("several-users", f"%{pairs[0][0].name} is also used by other ops")
    return single[-1] if single[0][0] < single[-1][0] else single[0]


def _is_conv(match: Match, node: fx.Node) -> bool:
    row = match.table.of(node)
    return row is not None and row.name == "conv2d" and row.fn is Q.conv2d


def _add_inside(match: Match, total: fx.Node) -> None:
    conv, other = _split(match, total)
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
    bounds = total.kwargs.get("bounds")
    kwargs = {k: v for k, v in conv.kwargs.items() if k in KEPT} | ({} if bounds is None else {"bounds": bounds})
    x, weight, bias = (*conv.args, None)[:3]
    with match.gm.graph.inserting_before(total):
        joined = match.gm.graph.call_function(Q.conv2d_add, (x, weight, bias, other), kwargs)
    joined.meta |= {VALUE: value_of(total), SOURCE: source_of(conv), QUANT: quant_of(conv)}
    name, both = conv.name, Match(match.gm, match.table, (conv, total))
    both.replace(total, joined)
    joined.name = name


RULE = Rule("add_inside", (Link("total", ("add",)),), _add_inside)
