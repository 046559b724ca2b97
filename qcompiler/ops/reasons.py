"""Why an op without a row stays float, in a user's words; where the back end has a word on it, that one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from qcompiler.ir.text import format_target
from qcompiler.ops.float_statements import statement_of
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.table import Table, parse_signature

Lacks = Callable[[Any], str | None]  # what a back end says of a function, a method name or a module class; None: nothing


def no_row(node: fx.Node, table: Table, lacks: Lacks) -> Obstacle:
    """Why a node that is no canonical call has no int8 form."""
    if node.op == "call_module":
        return _module(node, table, lacks)
    if statement_of(node.target) is not None:
        return Obstacle("float-statement", "the statement runs as it stands: it depends on data in a way that no graph can")
    known, name = lacks(node.target), format_target(node.target)
    other = None if known else _other_form(node, table)
    if other:
        return Obstacle("other-argument", f"{name}: {other}")
    reason = f"{name}: {known}" if known else f"{name} has no int8 form"
    return Obstacle("no-int8-form", reason + (_NEAR if name.rpartition(".")[2] in _PICKING else ""))


_PICKING = frozenset(("argmax", "argmin", "topk", "argsort", "sort", "kthvalue", "msort", "mode", "median"))
_NEAR = "; of values nearer than an int8 step it may pick another one than the float model, so keep what it reads float where that decides"


def _module(node: fx.Node, table: Table, lacks: Lacks) -> Obstacle:
    assert node.graph.owning_module is not None
    module = node.graph.owning_module.get_submodule(str(node.target))
    name, found = type(module).__name__, table.module_form(module)
    known, refused = lacks(type(module)), found[1].refuse(module) if found is not None else None
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
