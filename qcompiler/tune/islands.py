"""Which few ops are worth staying float: those that make the most noise where they stand, tried one by one on a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, fx

from qcompiler.config.corrections import Corrections
from qcompiler.debug.compare import Tallies
from qcompiler.debug.comparison import Comparison
from qcompiler.debug.explain import Explanation, Row
from qcompiler.debug.match import match
from qcompiler.debug.walk import Seen, Walk
from qcompiler.executable.steps import steps_of_graph
from qcompiler.ir.attributes import attribute
from qcompiler.tune.held_out import Item
from qcompiler.tune.let_go import SPARE, give_back, twins_for_now
from qcompiler.tune.score import LEAST_GAIN
from qcompiler.tune.together import together
from qcompiler.tune.trial import Trial
from qcompiler.workflow.explain import explain

TRIED = 8
SMALL = 0.1  # of the multiply-accumulates and of the weights, all together: more would cost what int8 is for


def islands(prepared: object, item: Item, corrections: Corrections, tell: Callable[[int, int], object]) -> frozenset[str]:
    """The names of ops, as keep_float takes them, that gain at least LEAST_GAIN dB on the batch, each beside those before it."""
    with twins_for_now(prepared, corrections) as made:
        if len(made) != 1:
            return frozenset()
        trial = Trial.of(prepared, made[0].floats, [(item.args, item.kwargs)])
        names, kept = together().of_first(_noisiest(made[0].floats, made[0].quantized, item, explain(prepared))), frozenset[str]()
    best = trial.sqnr(corrections)
    most = trial.sqnr(corrections | Corrections(keep_float=frozenset(names))) if names else best
    for done, name in enumerate(names, 1):
        if most < best + LEAST_GAIN:
            break  # all of them gain less beside those kept, so no one of them gains as much
        found = trial.sqnr(corrections | Corrections(keep_float=kept | {name}))
        if found >= best + LEAST_GAIN:
            best, kept = found, kept | {name}
        tell(done, len(names))
    return kept


class _Tallies(Tallies):
    """Gives memory back on the way: values of all sizes lie side by side in it."""

    def visit(self, seen: Seen) -> None:
        super().visit(seen)
        give_back(SPARE // 2)


def _errors(floats: fx.GraphModule, quantized: fx.GraphModule, item: Item) -> Comparison:
    one, other = steps_of_graph(floats), steps_of_graph(quantized)
    found = _Tallies(Walk(one, other, match(one, other), totals=False), "")
    with torch.inference_mode(), one.kept(), other.kept():
        found.add(0, item.args, dict(item.kwargs))
    return found.comparison()


def _noisiest(floats: fx.GraphModule, quantized: fx.GraphModule, item: Item, explanation: Explanation) -> list[str]:
    """Int8 ops, the one with the worst error of its own first, as long as together they are a small part of the work and of the weights.
    An op that is all of a module goes by the module's name, which stands in the user's code."""
    rows = {row.node: row for row in explanation.rows if row.int8 and not row.mode}
    paths = Counter(row.module_path for row in explanation.rows)
    costs = {node.name: (rows[node.name].macs, _weights(floats, node)) for node in floats.graph.nodes if node.name in rows}
    room = tuple(SMALL * sum(cost[i] for cost in costs.values()) for i in range(2))
    names = list[str]()
    for error in _errors(floats, quantized, item):
        row: Row | None = rows.get(error.name)
        left = tuple(has - cost for has, cost in zip(room, costs.get(error.name, room)))
        if row is not None and min(left) >= 0:
            room = left
            names.append(row.module_path if row.module_path and paths[row.module_path] == 1 else row.node)
        if len(names) == TRIED:
            break
    return names


def _weights(gm: fx.GraphModule, node: fx.Node) -> int:
    """How many numbers of the model's own the node takes."""
    held = [attribute(gm, str(given.target)) for given in node.all_input_nodes if given.op == "get_attr"]
    return sum(tensor.numel() for tensor in held if isinstance(tensor, Tensor))
