"""batch_norm behind a convolution or a linear, folded into its weight (the algebra: `ops/batch_norm.py`)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from qcompiler.compile.rewrite import Link, Match, Reject, Rule
from qcompiler.ir.attributes import attribute, bias_path, set_parameter
from qcompiler.ir.types import value_of
from qcompiler.ir.verify import where
from qcompiler.ops.batch_norm import Layout, Norm, channels_of, check_statistics, fold
from qcompiler.ops.spec import CONVOLUTIONS, Family, Op


def is_weighted(row: Op) -> bool:
    return row.family in (*CONVOLUTIONS, Family.LINEAR)


def constant(match: Match, node: object, what: str) -> Tensor | None:
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


def bias_of(conv: fx.Node) -> Any:
    return conv.args[2] if len(conv.args) > 2 else None


def check_bias(match: Match, conv: fx.Node) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a convolution or linear that no clamp follows; refused where they are computed."""
    if conv.kwargs.get("bounds") is not None:
        raise Reject("clamp-between", "a clamp stands between the two")
    weight, bias = constant(match, conv.args[1], "weight"), constant(match, bias_of(conv), "bias")
    assert weight is not None
    return weight, bias


def check_channels(match: Match, conv: fx.Node, weight: Tensor, statistics: Tensor) -> None:
    """Refused where the batch_norm has another number of channels."""
    row = match.row(conv)
    if statistics.numel() != (channels := channels_of(weight, int(row.weight_axis == 1), _groups(conv))):
        raise Reject("other-channels", f"BatchNorm has {statistics.numel()} channels, the {row.name} {channels}")


def _can_fold(match: Match, conv: fx.Node, bn: fx.Node) -> None:
    weight, _ = check_bias(match, conv)
    _, var, *_ = _statistics(match, bn)
    check_channels(match, conv, weight, var)
    shape = value_of(conv).shape
    if match.row(conv).family is Family.LINEAR and shape is not None and len(shape) != 2:
        raise Reject("other-dimension", f"BatchNorm's channels are dimension 1 of {len(shape)}, those of a linear the last")


def _fold(match: Match, conv: fx.Node, bn: fx.Node) -> None:
    weight, bias = check_bias(match, conv)
    mean, var, gamma, beta, eps = _statistics(match, bn)

    def exact(tensor: Any) -> Any:
        return None if tensor is None else tensor.double()

    norm = Norm(exact(mean), exact(var), exact(gamma), exact(beta), eps)
    folded, new_bias = fold(exact(weight), exact(bias), norm, Layout(int(match.row(conv).weight_axis == 1), _groups(conv)))
    path = str(conv.args[1].target)  # type: ignore[union-attr]
    with match.gm.graph.inserting_before(conv):
        w = set_parameter(match.gm, conv, path, folded.to(weight.dtype))
        b = set_parameter(match.gm, conv, bias_path(bias_of(conv), path), new_bias.to(weight.dtype))
    conv.args = (conv.args[0], w, b)
    match.replace(bn, conv)


RULES = (Rule("fold_batch_norm", (Link("conv", is_weighted), Link("bn", ("batch_norm",))), _fold, check=_can_fold, needs_partner=True),)
