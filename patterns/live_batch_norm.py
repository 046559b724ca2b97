"""batch_norm behind a convolution or a linear in a model that is trained: both become one op, which stays live.

batch_norm(conv(x)) -> conv_bn(x): what training computes and what convert folds stands in `qat/conv_bn.py`. Also for a
batch_norm that is frozen: its parameters may be trained all the same, and its statistics thawed.
"""

from __future__ import annotations

from torch import fx

from qcompiler.compile.rewrite import Link, Match, Reject, Rule, merged_source
from qcompiler.ir.types import SOURCE, source_of, value_of
from qcompiler.patterns.batch_norm import check_bias, check_channels, constant, is_weighted
from qcompiler.qat.ops import SUFFIX


def _join(match: Match, conv: fx.Node, bn: fx.Node) -> None:
    target = match.table.rows[match.row(conv).name + SUFFIX]
    args = [*conv.args, *[None] * (3 - len(conv.args)), *bn.args[1:]]
    name, base = conv.name, source_of(conv)
    joined = match.call(target.fn, *args, **conv.kwargs, **bn.kwargs)
    joined.name, joined.meta[SOURCE] = name, merged_source(match.nodes, base)


def _can_join(match: Match, conv: fx.Node, bn: fx.Node) -> None:
    """Refuses what the two as one op would not compute."""
    row = match.row(conv)
    if row.name + SUFFIX not in match.table.rows:
        raise Reject("own-row", f"the row of {row.name} is not the built-in one")
    weight, _ = check_bias(match, conv)
    mean, *_ = (constant(match, arg, "BatchNorm's statistics") for arg in bn.args[1:])
    if mean is None:
        raise Reject("no-statistics", "this BatchNorm has no running statistics")
    check_channels(match, conv, weight, mean)
    shape = value_of(conv).shape
    if shape is not None and len(shape) != weight.dim():
        raise Reject("other-dimension", f"BatchNorm's channels are dimension 1 of {len(shape)}, those of the {row.name} are not")


RULES = (Rule("join_batch_norm", (Link("conv", is_weighted), Link("bn", ("batch_norm",))), _join, check=_can_join, needs_partner=True),)
