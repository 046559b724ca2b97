"""A copy of floats that are rounded behind it becomes one of codes: q(copy(x)) = copy(q(x)). So a pad of the input is in the region.

What has codes already, as a pad between two convolutions, is not rounded again: it is such a copy where the codes are the same ones.
"""

from __future__ import annotations

import torch
from torch import fx

from qcompiler.backends.native.plan.forms import c_forms
from qcompiler.ir.types import QUANT, SOURCE, VALUE, Quant, Value, quant_of, source_of, value_of
from qcompiler.ops.arguments import changes
from qcompiler.ops.reference import dequantize, quantize
from qcompiler.ops.spec import Family, Output
from qcompiler.ops.table import Table


def round_before_copies(gm: fx.GraphModule, table: Table) -> list[str]:
    """Puts quantize before each op that moves floats alone and whose readers all round to the same codes; the last of a chain first. The
    names of these ops, which are int8 now."""
    found = []
    for node in reversed(list(gm.graph.nodes)):
        if _moves_floats(node, table) and (given := _rounded_by_all(node)) is not None and _fits(node.args[0], given):
            if not _has_codes(node.args[0]):
                _round_before(gm.graph, node, given)
            node.meta[QUANT] = Quant(int8=True)
            found.append(node.name)
    return found


def _moves_floats(node: fx.Node, table: Table) -> bool:
    row, source = table.of(node), node.args[0] if node.args else None
    if row is None or row.family is not Family.COPY or row.output is not Output.SAME or quant_of(node).int8 or row.name not in c_forms():
        return False
    if row.draws(node.kwargs):
        return False
    if not isinstance(source, fx.Node) or source.op == "get_attr" or any(changes(user, source) for user in source.users):
        return False  # what is assigned into is read behind that by this very copy: its codes belong to where the copy stands
    return value_of(source).dtype is torch.float32 and value_of(node).shape is not None


def _rounded_by_all(node: fx.Node) -> fx.Node | None:
    """The quantize node that reads it, where others that do have the same qparams, which are uint8."""
    users = list(node.users)
    if not users or any(user.target is not quantize or user.args[1:] != users[0].args[1:] for user in users):
        return None
    return users[0] if value_of(users[0]).dtype is torch.uint8 and quant_of(users[0]).qparams is not None else None


def _has_codes(x: object) -> bool:
    return isinstance(x, fx.Node) and x.target is dequantize


def _fits(x: object, given: fx.Node) -> bool:
    """Whether the copy would read the codes that are made of its result. Those of other steps are not rounded twice."""
    if not isinstance(x, fx.Node) or not _has_codes(x):
        return True
    codes = x.args[0]
    return isinstance(codes, fx.Node) and codes.target is quantize and codes.args[1:] == given.args[1:]


def _round_before(graph: fx.Graph, node: fx.Node, given: fx.Node) -> None:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    with graph.inserting_before(node):
        codes = graph.create_node("call_function", quantize, (x, *given.args[1:]), name=f"{node.name}_input_q")
        floats = graph.create_node("call_function", dequantize, (codes, *given.args[1:3]), name=f"{node.name}_input_dq")
    for made, dtype in ((codes, torch.uint8), (floats, torch.float32)):
        made.meta[VALUE], made.meta[SOURCE] = Value(value_of(x).shape, dtype), source_of(x)
    codes.meta[QUANT] = quant_of(given)
    node.replace_input_with(x, floats)
