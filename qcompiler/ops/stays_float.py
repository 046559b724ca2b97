"""The one rule by which staying float spreads: who asks, and when, changes; what follows from an op that is float does not.

An op with weights is int8 wherever it may be, since its input is quantized for it. Every other op pays only behind an int8 value:
one that copies its input needs that to be int8, one that computes needs any of its inputs to be. So a pass that makes ops float
names the seeds with their reasons, and `spread` names what follows: after the decision, after calibration, and in a back end that
has no kernel for an op. No op is left int8 behind a value that nobody quantizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import fx

from qcompiler.ir.types import quant_of
from qcompiler.ops.arguments import activations, asks_size
from qcompiler.ops.obstacles import FLOAT_INPUT, FLOAT_INPUTS, FLOAT_RESULT, Obstacle
from qcompiler.ops.spec import Op, Output
from qcompiler.ops.table import Table


def is_int8(value: fx.Node) -> bool:
    """Whether the op hands out integers, so that what copies it is int8."""
    return quant_of(value).int8 and not quant_of(value).float_output


def starved(row: Op | None, inputs: Sequence[fx.Node], int8: Callable[[fx.Node], bool] = is_int8) -> Obstacle | None:
    """Why an op is float because of its activations `inputs`, None where it may be int8. `int8`: which values are."""
    if row is None or row.weight is not None or not inputs:
        return None
    needed = inputs[:1] if row.output is Output.SAME else inputs
    if any(int8(value) for value in needed):
        return None
    if row.output is not Output.SAME:
        return FLOAT_INPUTS
    source = quant_of(inputs[0])
    return FLOAT_RESULT if source.float_output or source.code == FLOAT_RESULT.code else FLOAT_INPUT


def spread(graph: fx.Graph, table: Table) -> Iterator[tuple[fx.Node, Obstacle]]:
    """The int8 ops that float inputs make float, in order. The caller makes each float before it asks for the next."""
    for node in graph.nodes:
        if quant_of(node).int8 and (row := table.of(node)) is not None:
            why = starved(row, list(activations(table, node)))
            if why is not None:
                yield node, why


@dataclass
class Readers:
    """Who uses a value, seen through the int8 ops that copy it. Whoever asks for its size alone does not."""

    int8: list[tuple[fx.Node, fx.Node]] = field(default_factory=list)  # ops that compute with it, each with the (copied) value
    floats: list[fx.Node] = field(default_factory=list)  # results, float ops, and ops that take it as anything but an activation
    copies: dict[fx.Node, None] = field(default_factory=dict)  # in the order in which they were met


def readers(node: fx.Node, table: Table) -> Readers:
    """Who uses the node's value. A copy is an int8 op whose row says that its result has its input's scale."""
    found, left = Readers(), [node]
    while left:  # a loop, for a chain of copies may be longer than Python nests calls
        value = left.pop()
        for user in value.users:
            row = table.of(user)
            if asks_size(user):
                continue
            if not quant_of(user).int8 or value not in set(activations(table, user)):
                found.floats.append(user)
            elif row is None or row.output is not Output.SAME:
                found.int8.append((user, value))
            elif user not in found.copies:
                found.copies[user] = None
                left.append(user)
    return found


def results_at(graph: fx.Graph, indexes: Sequence[int]) -> list[fx.Node]:
    """The values that the graph returns at these places of its result."""
    result = next(node for node in reversed(graph.nodes) if node.op == "output").args[0]
    entries = list(result) if isinstance(result, (list, tuple)) else [result]
    return [entry for i, entry in enumerate(entries) if i in indexes and isinstance(entry, fx.Node)]
