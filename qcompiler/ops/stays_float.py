"""The one rule by which staying float spreads: who asks, and when, changes; what follows from an op that is float does not.

An op with weights is int8 wherever it may be, since its input is quantized for it. Every other op pays only behind an int8 value:
one that copies its input needs that to be int8, one that computes needs any of its inputs to be. So a pass that makes ops float
names the seeds with their reasons, and `spread` names what follows: after the decision, after calibration, and in a back end that
has no kernel for an op. No op is left int8 behind a value that nobody quantizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from qcompiler.ir.attributes import attribute
from qcompiler.ir.types import quant_of, value_of
from qcompiler.ops.arguments import activations, asks_size
from qcompiler.ops.obstacles import FLOAT_INPUT, FLOAT_INPUTS, FLOAT_PART, FLOAT_RESULT, Obstacle
from qcompiler.ops.spec import Op, Output
from qcompiler.ops.state import read_state
from qcompiler.ops.table import Table

FLOATS = Obstacle("float-readers", "no int8 op uses its result")
RESULT = Obstacle("result", "it is a result of the model, whose small values 8 bits of its fixed range would make 0")
USERS = Obstacle("float-users", "only ops that compute in float, such as normalizations, use its result")
STEEP = Obstacle("steep-users", "only ops that make small values large, such as sqrt and log, use its result")
DIVISORS = Obstacle("unlike-divisors", "it divides channels by constants of unlike size: their common steps leave hardly anything of some")
UNEVEN = 16.0  # 4 bits: by how much divisors of one value may differ


def is_int8(value: fx.Node) -> bool:
    """Whether the op hands out integers, so that what copies it is int8."""
    return quant_of(value).int8 and not quant_of(value).float_output


def reads_sums(node: fx.Node, table: Table) -> bool:
    """Whether the int8 op computes on the sums of the op before it, which nothing rounds (passes/keep_sums.py, passes/fold_affine.py)."""
    if quant_of(node).folded:
        return True
    row, first = table.of(node), next(activations(table, node), None)
    own = row is not None and row.output in (Output.OWN, Output.FIXED) and quant_of(node).int8
    return own and first is not None and quant_of(first).int8 and quant_of(first).float_output


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
    """The int8 ops that float inputs make float, in order, behind those that hand out a tuple of which a part stays float.

    The caller makes each float before it asks for the next.
    """
    for node in graph.nodes:
        if quant_of(node).int8 and value_of(node).shape is None and any(_takes_float_part(user, table) for user in node.users):
            yield node, FLOAT_PART
    for node in graph.nodes:
        if quant_of(node).int8 and (row := table.of(node)) is not None:
            why = starved(row, list(activations(table, node)))
            if why is not None and not reads_sums(node, table):
                yield node, why


def _takes_float_part(user: fx.Node, table: Table) -> bool:
    """Whether the node takes an item of a tuple, and stays float."""
    row = table.of(user)
    return row is not None and row.output is Output.SAME and not quant_of(user).int8


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


def better_float(
    node: fx.Node, kept: Mapping[fx.Node, Obstacle], quantized: Sequence[fx.Node], table: Table, computes_float: Callable[[Op], bool]
) -> Obstacle | None:
    """Why an int8 op without weights is better off in float: `kept` and others that take floats are all that read its result.

    None where an int8 op reads the result and gains from that, or the caller wants it quantized, at `quantized`. `computes_float`:
    of which rows the back end's int8 form computes in float inside. See keep_float.
    """
    row = table.of(node)
    if row is None or not quant_of(node).int8 or row.weight is not None or not _rounds(row, node):
        return None
    found = readers(node, table)
    if any(value in quantized for value in (node, *found.copies)):
        return None
    if _divides_unevenly(node, row):
        return DIVISORS
    reasons = _reasons(found, kept, table, computes_float)
    if None in reasons:
        return RESULT if row.output is Output.FIXED and any(user.op == "output" for user in found.floats) else None
    why = next((r for r in (STEEP, USERS, FLOATS) if r in reasons), FLOATS)
    return None if why is FLOATS and row.macs is not None else why


def passes_on(node: fx.Node, kept: Mapping[fx.Node, Obstacle], table: Table, computes_float: Callable[[Op], bool]) -> Obstacle | None:
    """What an op that is float anyway tells the ops before it: that it, or what reads its result, would round them in vain.

    So what is float for another reason than int8's own asks of its producers what it asked before, and never makes one int8.
    """
    row = table.of(node)
    if row is None or row.weight is not None or quant_of(node).int8:
        return None
    if computes_float(row):
        return USERS
    reasons = _reasons(readers(node, table), kept, table, computes_float)
    return next((r for r in (STEEP, USERS) if r in reasons), None)


def _rounds(row: Op, node: fx.Node) -> bool:
    """Whether the op's result is no value of its input, so that int8 rounds it anew."""
    return row.output in (Output.OWN, Output.FIXED, Output.JOIN) or (row.output is Output.SAME and row.averages(node.kwargs))


def _reasons(found: Readers, kept: Mapping[fx.Node, Obstacle], table: Table, computes_float: Callable[[Op], bool]) -> list[Obstacle | None]:
    """Why each reader is better off with floats; None where it is not."""
    return [*(kept.get(user, FLOATS) for user in found.floats),
            *(_takes_float(user, value, table.of(user), computes_float) for user, value in found.int8)]  # fmt: skip


def _takes_float(user: fx.Node, value: fx.Node, row: Op | None, computes_float: Callable[[Op], bool]) -> Obstacle | None:
    if row is None:
        return None
    steep = any(row.spreads(user.kwargs, i) for i, argument in enumerate(user.args) if argument is value)
    return USERS if computes_float(row) else STEEP if steep else None


def _divides_unevenly(node: fx.Node, row: Op) -> bool:
    """Whether channels of a value are divided by constants of unlike size: of those that it makes large, the step that all share leaves
    little. (What multiplies says nothing: small factors of a trained layer scale stay small.)"""
    if row.name != "div" or len(node.args) < 2 or not isinstance(node.args[1], fx.Node):
        return False
    divisors = constant(node.args[1])
    if not isinstance(divisors, Tensor) or divisors.numel() < 2:
        return False
    sizes = divisors.abs().double()
    return bool(sizes.max() > UNEVEN * sizes.min().clamp(min=1e-30))


def _of_state(node: fx.Node) -> bool:
    """Whether a call reads or writes what a forward keeps between its calls."""
    return getattr(node.target, "__module__", None) == read_state.__module__


def constant(node: fx.Node) -> Any:
    """The value of a node that parameters and buffers alone decide; None of any other, of states and of what is drawn, and
    where it cannot be told."""
    module = node.graph.owning_module
    if node.op == "get_attr" and module is not None:
        found, state = attribute(module, str(node.target)), any(_of_state(user) for user in node.users)
        return found.detach() if isinstance(found, Tensor) and not state else None
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes or quant_of(node).int8:
        return None
    known = {taken: constant(taken) for taken in node.all_input_nodes}
    if any(made is None for made in known.values()):
        return None
    args, kwargs = fx.node.map_arg((tuple(node.args), dict(node.kwargs)), known.__getitem__)
    function: Any = getattr(type(args[0]), str(node.target), None) if node.op == "call_method" else node.target
    before = torch.get_rng_state()
    try:
        with torch.random.fork_rng(devices=[]):
            made = function(*args, **kwargs)
            return made if torch.equal(torch.get_rng_state(), before) else None
    except Exception:  # what runs in a module's place alone
        return None
