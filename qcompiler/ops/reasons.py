"""Why an op without a row stays float, in a user's words; most have no more to say than that they have no int8 form."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from qcompiler.ir.text import format_target
from qcompiler.ops.float_statements import statement_of
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.table import Table, parse_signature

SUMS = "it adds up values without bound, which leaves the range of 8 bits"
MASK = "int8 has no kernel that chooses by a mask"
INDICES = "its int8 kernel gives no indices"
WIDE = "its results span too wide a range for 8 bits"
BILINEAR = "int8 has no kernel for a product of three factors"
REASONS: dict[Any, str] = {
    **dict.fromkeys((torch.cumsum, "cumsum", torch.cumprod, "cumprod", torch.prod, "prod", torch.logsumexp, "logsumexp"), SUMS),
    **dict.fromkeys((torch.where, "where", "masked_fill", torch.masked_fill, "masked_scatter"), MASK),
    **dict.fromkeys((F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices, F.adaptive_max_pool1d_with_indices,
                     F.adaptive_max_pool2d_with_indices, F.adaptive_max_pool3d_with_indices), INDICES),
    **dict.fromkeys((F.log_softmax, torch.log_softmax, "log_softmax", nn.LogSoftmax), WIDE),
    **dict.fromkeys((torch.einsum, torch.tensordot), "int8 has no kernel for sums of products by index; matmul has one"),
    **dict.fromkeys((F.bilinear, nn.Bilinear), BILINEAR),
    F.scaled_dot_product_attention: "torch's int8 matmul computes in float, so its product of queries and keys gains nothing",
}  # fmt: skip


def no_row(node: fx.Node, table: Table) -> Obstacle:
    """Why a node that is no canonical call has no int8 form."""
    if node.op == "call_module":
        return _module(node, table)
    if statement_of(node.target) is not None:
        return Obstacle("float-statement", "the statement runs as it stands: it depends on data in a way that no graph can")
    known, name = REASONS.get(node.target), format_target(node.target)
    other = None if known else _other_form(node, table)
    if other:
        return Obstacle("other-argument", f"{name}: {other}")
    return Obstacle("no-int8-form", f"{name}: {known}" if known else f"{name} has no int8 form")


def _module(node: fx.Node, table: Table) -> Obstacle:
    assert node.graph.owning_module is not None
    module = node.graph.owning_module.get_submodule(str(node.target))
    name, found = type(module).__name__, table.module_form(module)
    known, refused = REASONS.get(type(module)), found[1].refuse(module) if found is not None else None
    if known or refused:
        return Obstacle("no-int8-form" if known else "other-argument", f"{name}: {known or refused}")
    if type(module).__module__.startswith("torch.nn."):
        return Obstacle("no-int8-form", f"{name} has no int8 form")
    return Obstacle("whole-module", "it is called as a whole module")


def _other_form(node: fx.Node, table: Table) -> str | None:
    """The argument by which a call differs from the form that its op's row describes."""
    found = table.spelled(node.target)
    if found is None:
        return None
    given, required = dict(node.kwargs), parse_signature(found[1].signature or found[0].signature)
    given.update({user: value for (_, user, _, _), value in zip(required, node.args, strict=False)})
    other = [f"{user}={given[user]}" for kind, user, _, default in required if kind == "!" and user in given and given[user] != default]
    return f"not with {', '.join(other)}" if other else None
