"""Which int8 values the noise of a float value comes from, and how much larger or smaller it became on the way."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import fx

from qcompiler.ops.arguments import activations
from qcompiler.ops.spec import Family, Op, Output
from qcompiler.ops.stays_float import is_int8
from qcompiler.ops.table import Table

FARTHEST = 8  # ops between a value and the rounding that is looked for: a residual stream of a thousand sums is as long


def noise_sources(value: fx.Node, table: Table, seen_through: Callable[[fx.Node], bool]) -> dict[fx.Node, float]:
    """The int8 values on scales of their own that `value` is computed from, each with the factor of its noise.

    What is followed are copies, sums, products with numbers and activations, whose slope is at most about 1. Of `x + x` the noise is twice
    that of x. `seen_through`: nodes that hand on what they take, such as observers.
    """
    found: dict[fx.Node, float] = {}
    front = {value: 1.0}
    for _ in range(FARTHEST):
        behind: dict[fx.Node, float] = {}
        for node, factor in front.items():
            row = table.of(node)
            if seen_through(node):
                before = list[tuple[object, float]]([(node.args[0], 1.0)])
            elif is_int8(node) and row is not None and row.output in (Output.OWN, Output.JOIN):
                found[node] = found.get(node, 0.0) + factor
                continue
            else:
                before = [] if is_int8(node) and row is not None and row.output is not Output.SAME else taken(node, table)
            for source, gain in before:
                if isinstance(source, fx.Node):
                    behind[source] = behind.get(source, 0.0) + factor * gain
        front = behind
    return found


def taken(node: fx.Node, table: Table) -> list[tuple[object, float]]:
    """What a node computes its value from, each with the gain of its noise; nothing where that is not known."""
    row = table.of(node)
    if row is None or row.weights(node) or row.averages(node.kwargs):
        return []
    values = list(activations(table, node))
    if row.output is Output.SAME:
        return [(value, 1.0) for value in values[:1]]
    if row.family is Family.ARITHMETIC and len(values) == 1:
        gain = _slope(row, node)
        return [] if gain is None else [(values[0], gain)]
    if row.homogeneous(node.kwargs) or (row.family is Family.ACTIVATION and row.elementwise):
        return [(value, 1.0) for value in values]
    return []


def _slope(row: Op, node: fx.Node) -> float | None:
    """Of arithmetic with a number: how much the result changes with the value. None where that is not one number."""
    numbers = [arg for arg in node.args if not isinstance(arg, fx.Node)]
    settings = {key: value for key, value in node.kwargs.items() if key != "bounds"}
    if not all(isinstance(number, (int, float)) for number in (*numbers, *settings.values())):
        return None
    values = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    results = row.fn(*(values if isinstance(arg, fx.Node) else arg for arg in node.args), **settings)
    first, second = (results[1:] - results[:-1]).tolist()
    return abs(first) if math.isclose(first, second) else None
