"""batch_norm behind a convolution or a linear in a model that is trained: both become one op, which stays live.

batch_norm(conv(x)) -> conv_bn(x): what training computes and what convert folds stands in `qat/conv_bn.py`. Also for a
batch_norm that is frozen: its parameters may be trained all the same, and its statistics thawed.
"""

from __future__ import annotations

from torch import fx

from qcompiler.ir.types import SOURCE, VALUE, source_of, value_of
from qcompiler.ops.batch_norm import channels_of
from qcompiler.patterns.batch_norm import WEIGHTED, constant
from qcompiler.qat.ops import SUFFIX
from qcompiler.rewrite import Link, Match, Reject, Rule


def _join(match: Match, conv: fx.Node, bn: fx.Node) -> None:
    row = match.row(conv)
    target = match.table.rows.get(row.name + SUFFIX)
    if target is None:
        raise Reject("own-row", f"the row of {row.name} is not the built-in one")
    _check(match, conv, bn)
    args = [*conv.args, *[None] * (3 - len(conv.args)), *bn.args[1:]]
    kwargs = {**conv.kwargs, **bn.kwargs}
    with match.gm.graph.inserting_before(bn):
        joined = match.gm.graph.create_node("call_function", target.fn, tuple(args), kwargs)
    joined.meta[VALUE], joined.meta[SOURCE] = bn.meta[VALUE], source_of(conv)
    name = conv.name
    match.replace(bn, joined)
    joined.name = name


def _check(match: Match, conv: fx.Node, bn: fx.Node) -> None:
    """Refuses what the two as one op would not compute."""
    row, groups = match.row(conv), conv.kwargs.get("groups", 1)
    if conv.kwargs.get("bounds") is not None:
        raise Reject("clamp-between", "a clamp stands between the two")
    weight = constant(match, conv.args[1], "weight")
    constant(match, conv.args[2] if len(conv.args) > 2 else None, "bias")
    mean, *_ = (constant(match, arg, "BatchNorm's statistics") for arg in bn.args[1:])
    assert weight is not None and isinstance(groups, int)
    if mean is None:
        raise Reject("no-statistics", "this BatchNorm has no running statistics")
    if mean.numel() != (channels := channels_of(weight, int(row.weight_axis == 1), groups)):
        raise Reject("other-channels", f"BatchNorm has {mean.numel()} channels, the {row.name} {channels}")
    shape = value_of(conv).shape
    if shape is not None and len(shape) != weight.dim():
        raise Reject("other-dimension", f"BatchNorm's channels are dimension 1 of {len(shape)}, those of the {row.name} are not")


RULES = (Rule("join_batch_norm", (Link("conv", WEIGHTED), Link("bn", ("batch_norm",))), _join),)
