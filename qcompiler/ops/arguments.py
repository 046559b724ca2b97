"""Which arguments of a canonical call are activations, and which a call changes."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from qcompiler.ir.types import quant_of, value_of
from qcompiler.ops.spec import Output, Role
from qcompiler.ops.table import Table

SIZES = ("size", "numel", "nelement", "stride", "storage_offset")  # methods that compute nothing


def activations(table: Table, node: fx.Node) -> Iterator[fx.Node]:
    """The tensors (or tuples of them) that a canonical node takes as activations, in order; none for other nodes.

    A module of the user's that is called in int8 takes all its tensors so.
    """
    row = table.of(node)
    if node.op == "call_module" and quant_of(node).int8:
        yield from (a for a in node.all_input_nodes if value_of(a).dtype is torch.float32)
    for param, arg in zip(row.params if row is not None else (), node.args, strict=False):
        if param.role is Role.ACTIVATION and isinstance(arg, fx.Node) and (value_of(arg).shape is not None or table.of(arg) is not None):
            yield arg
        elif param.role is Role.ACTIVATIONS and isinstance(arg, (list, tuple)):
            yield from (a for a in arg if isinstance(a, fx.Node))


def is_int8_join(node: fx.Node, table: Table) -> bool:
    """Whether a node puts int8 values beside each other (cat, stack), on steps that may be theirs."""
    row = table.of(node)
    return row is not None and row.output is Output.JOIN and quant_of(node).int8


def replace_activations(table: Table, node: fx.Node, old: fx.Node, new: fx.Node) -> None:
    """Feeds `new` to `node` wherever it took `old` as an activation."""
    row = table.of(node)
    if row is None:
        node.replace_input_with(old, new)
        return
    args: list[Any] = list(node.args)
    for i, param in enumerate(row.params[: len(args)]):
        if param.role is Role.ACTIVATION and args[i] is old:
            args[i] = new
        elif param.role is Role.ACTIVATIONS and isinstance(args[i], (list, tuple)):
            args[i] = type(args[i])(new if a is old else a for a in args[i])
    node.args = tuple(args)


def changes(user: fx.Node, value: fx.Node) -> bool:
    """Whether a call writes into `value`: an assignment, or an in-place method (the tracer leaves them on copies of its own alone)."""
    if not user.args or user.args[0] is not value:
        return False
    name = str(user.target)
    return user.target is operator.setitem or (user.op == "call_method" and name.endswith("_") and not name.endswith("__"))


def asks_size(user: fx.Node) -> bool:
    """Whether a call asks for a size, a length, a type or the like, and reads no values."""
    return user.target in (*SIZES, "dim", len) or (user.target is getattr and value_of(user).shape is None)
