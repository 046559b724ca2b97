"""batch_norm behind a convolution or a linear, folded into its weight (the algebra: `ops/batch_norm.py`)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from qcompiler.ir.attributes import attribute, bias_path, set_parameter
from qcompiler.ir.types import value_of
from qcompiler.ir.verify import where
from qcompiler.ops.batch_norm import channels_of, check_statistics, fold
from qcompiler.rewrite import Link, Match, Reject, Rule

WEIGHTED = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear")


def constant(match: Match, node: Any, what: str) -> Tensor | None:
    """The tensor of a parameter argument; None where there is none."""
    if node is None:
        return None
    if not (isinstance(node, fx.Node) and node.op == "get_attr"):
        raise Reject("not-constant", f"the {what} is computed at run time, not a parameter")
    return attribute(match.gm, str(node.target))


def _statistics(match: Match, bn: fx.Node) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, float]:
    """(mean, var, gamma, beta, eps); refused or an error where they give no finite scale."""
    if "training" in bn.kwargs:
        raise Reject("live", "this BatchNorm is trained")
    mean, var, gamma, beta = (constant(match, bn.args[i] if i < len(bn.args) else None, "BatchNorm's statistics") for i in range(1, 5))
    if mean is None or var is None:
        raise Reject("no-statistics", "this BatchNorm has no running statistics")
    eps = float(bn.kwargs.get("eps", 1e-5))  # type: ignore[arg-type]
    check_statistics(mean, var, eps, where(bn))
    return mean, var, gamma, beta, eps


def _groups(conv: fx.Node) -> int:
    groups = conv.kwargs.get("groups", 1)
    assert isinstance(groups, int)
    return groups


def _fold(match: Match, conv: fx.Node, bn: fx.Node) -> None:
    if conv.kwargs.get("bounds") is not None:
        raise Reject("clamp-between", "a clamp stands between the two")
    weight = constant(match, conv.args[1], "weight")
    bias = constant(match, conv.args[2] if len(conv.args) > 2 else None, "bias")
    assert weight is not None
    row = match.row(conv)
    layout = {"weight_axis": int(row.weight_axis == 1), "groups": _groups(conv)}
    mean, var, gamma, beta, eps = _statistics(match, bn)
    if var.numel() != (channels := channels_of(weight, **layout)):
        raise Reject("other-channels", f"BatchNorm has {var.numel()} channels, the {row.name} {channels}")
    shape = value_of(conv).shape
    if row.name == "linear" and shape is not None and len(shape) != 2:
        raise Reject("other-dimension", f"BatchNorm's channels are dimension 1 of {len(shape)}, those of a linear the last")
    exact = (None if t is None else t.double() for t in (weight, bias, mean, var, gamma, beta))
    folded, new_bias = fold(*exact, eps=eps, **layout)  # type: ignore[arg-type]
    path = str(conv.args[1].target)  # type: ignore[union-attr]
    with match.gm.graph.inserting_before(conv):
        w = set_parameter(match.gm, conv, path, folded.to(weight.dtype))
        b = set_parameter(match.gm, conv, bias_path(conv.args[2] if len(conv.args) > 2 else None, path), new_bias.to(weight.dtype))
    conv.args = (conv.args[0], w, b)
    match.replace(bn, conv)


RULES = (Rule("fold_batch_norm", (Link("conv", WEIGHTED), Link("bn", ("batch_norm",))), _fold),)
