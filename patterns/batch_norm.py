"""batch_norm behind a convolution or a linear, folded into its weight.

batch_norm(conv(x)) -> conv(x) with  s = gamma / sqrt(var + eps);  W *= s along the output channels;  b = (b - mean) * s + beta.
W is (O, I/g, k...) for conv and linear, (I, O/g, k...) for a transposed convolution, where output channel c of group j stands
at [:, c] of the j-th block of I/g rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qcompiler.errors import NumericsError
from qcompiler.ir.attributes import attribute, set_parameter
from qcompiler.ir.verify import where
from qcompiler.rewrite import Link, Match, Reject, Rule

WEIGHTED = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear")


def constant(match: Match, node: Any, what: str) -> Tensor | None:
    """The tensor of a parameter argument; None where there is none."""
    if node is None:
        return None
    if not (isinstance(node, fx.Node) and node.op == "get_attr"):
        raise Reject("not-constant", f"the {what} is computed at run time, not a parameter")
    return attribute(match.gm, str(node.target))


def _affine(match: Match, bn: fx.Node) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode as y = x * s + t, in float64."""
    mean, var, gamma, beta = (constant(match, bn.args[i] if i < len(bn.args) else None, "BatchNorm's statistics") for i in range(1, 5))
    if mean is None or var is None:
        raise Reject("no-statistics", "this BatchNorm has no running statistics")
    variance = var.double() + float(bn.kwargs.get("eps", 1e-5))  # type: ignore[arg-type]
    if not bool((variance > 0).all()) or not bool(torch.isfinite(mean).all()):
        raise NumericsError("BatchNorm's running statistics are negative, zero without eps, or not finite", code="bad-batch-norm",
                            where=where(bn), hint="the model was not trained, or its checkpoint is damaged")  # fmt: skip
    scale = (gamma.double() if gamma is not None else 1.0) / variance.sqrt()
    return scale, (beta.double() if beta is not None else 0.0) - mean.double() * scale


def _scaled(weight: Tensor, scale: Tensor, groups: int, transposed: bool) -> Tensor:
    if not transposed:
        return weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))
    blocks: Tensor = weight.double().unflatten(0, (groups, -1))
    scaled: Tensor = blocks * scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
    return scaled.flatten(0, 1)


def _groups(conv: fx.Node) -> int:
    groups = conv.kwargs.get("groups", 1)
    assert isinstance(groups, int)
    return groups


def fold(match: Match, conv: fx.Node, bn: fx.Node) -> None:
    if conv.kwargs.get("bounds") is not None:
        raise Reject("clamp-between", "a clamp stands between the two")
    weight = constant(match, conv.args[1], "weight")
    bias = constant(match, conv.args[2] if len(conv.args) > 2 else None, "bias")
    assert weight is not None
    row, groups = match.row(conv), _groups(conv)
    channels = weight.shape[1] * groups if row.weight_axis == 1 else weight.shape[0]
    scale, shift = _affine(match, bn)
    if scale.numel() != channels:
        raise Reject("other-channels", f"BatchNorm has {scale.numel()} channels, the {row.name} {channels}")
    folded = _scaled(weight, scale, groups, row.weight_axis == 1)
    new_bias = shift + (bias.double() * scale if bias is not None else 0.0)
    path = str(conv.args[1].target)  # type: ignore[union-attr]
    with match.gm.graph.inserting_before(conv):
        w = set_parameter(match.gm, conv, path, folded.to(weight.dtype))
        b = set_parameter(match.gm, conv, _bias_path(conv, path), new_bias.to(weight.dtype))
    conv.args = (conv.args[0], w, b)
    match.replace(bn, conv)


def _bias_path(conv: fx.Node, weight_path: str) -> str:
    if len(conv.args) > 2 and isinstance(conv.args[2], fx.Node):
        return str(conv.args[2].target)
    prefix, _, name = weight_path.rpartition(".")
    return f"{prefix}.{name.replace('weight', 'bias') if 'weight' in name else name + '_bias'}".lstrip(".")


RULES = (Rule("fold_batch_norm", (Link("conv", WEIGHTED), Link("bn", ("batch_norm",))), fold),)
