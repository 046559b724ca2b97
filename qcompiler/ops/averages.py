"""Means of many values: they have their input's scale, of which values that cancel leave little."""

from __future__ import annotations

import math

from torch import fx

from qcompiler.ir.types import quant_of, value_of
from qcompiler.ops.arguments import activations
from qcompiler.ops.spec import Output
from qcompiler.ops.table import Table

MANY = 16  # values in a mean: of random signs, their mean has a quarter of their size


def averages_many(node: fx.Node, table: Table) -> bool:
    """Whether it is an int8 mean of so many values of one whose range was measured that its own may be much smaller."""
    row = table.of(node)
    if row is None or row.output is not Output.SAME or not quant_of(node).int8 or not row.averages(node.kwargs):
        return False
    before = [math.prod(shape) for value in activations(table, node) if (shape := value_of(value).shape) is not None]
    after = value_of(node).shape
    return bool(before) and after is not None and before[0] >= MANY * math.prod(after) > 0
