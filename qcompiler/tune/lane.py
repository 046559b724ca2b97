"""A graph that is run piece by piece on several batches, as a walk from one op to the next needs it.

Between two pieces a batch keeps what is still to be read. Dequantized values are not kept: their integers are, which take a quarter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, fx

from qcompiler.ir.attributes import attribute
from qcompiler.ops.reference import dequantize, dequantize_weight, unpack_4bit, widen
from qcompiler.ops.state_nodes import is_write

Batch: TypeAlias = tuple[tuple[object, ...], Mapping[str, object]]
AGAIN = (dequantize, dequantize_weight, unpack_4bit, widen)  # cheaper to compute again than to keep


class Lane:
    """One graph and where the batches stand in it. Each batch is taken as a first call: what a model keeps between calls is not written."""

    def __init__(self, gm: fx.GraphModule, batches: Sequence[Batch]) -> None:
        self.gm, self.nodes = gm, list(gm.graph.nodes)
        self.index = {node: i for i, node in enumerate(self.nodes)}
        self.last = self._last_reads()
        self.at = 0
        self.given = [self._arguments(batch) for batch in batches]
        self.held: list[dict[fx.Node, object]] = [{} for _ in batches]
        self.made: dict[fx.Node, object] = {}  # of this piece, the same for all batches

    def __len__(self) -> int:
        return len(self.held)

    def advance(self, node: fx.Node) -> None:
        """Runs all batches up to the node, which is not run."""
        end = self.index[node]
        piece = self.nodes[self.at : end]
        self.made = {}
        for number, held in enumerate(self.held):
            for step in piece:
                if self._runs(step):
                    held[step] = self._run(step, number)
                    self._drop(held, step)
            for kept in [n for n in held if self.last[n] < end or n.target is dequantize]:
                del held[kept]
        self.at, self.made = end, {}

    def value(self, node: object, number: int) -> Tensor:
        """What a node of the piece behind has of one batch."""
        assert isinstance(node, fx.Node)
        found = self._value(node, number)
        assert isinstance(found, Tensor)
        return found

    def _runs(self, node: fx.Node) -> bool:
        return node.op != "output" and node.op != "get_attr" and node.target not in AGAIN and not is_write(node)

    def _drop(self, held: dict[fx.Node, object], done: fx.Node) -> None:
        """Forgets what was read for the last time."""
        for source in done.all_input_nodes:
            if self.last.get(source, -1) <= self.index[done]:
                held.pop(source, None)

    def _last_reads(self) -> dict[fx.Node, int]:
        """By node the place of its last reader, seen through what is computed again."""
        last: dict[fx.Node, int] = {}
        for node in reversed(self.nodes):
            last.setdefault(node, self.index[node])
            read = last[node] if node.target in AGAIN else self.index[node]
            for source in node.all_input_nodes:
                last[source] = max(last.get(source, -1), read)
        return last

    def _arguments(self, batch: Batch) -> dict[str, object]:
        names = [str(node.target).lstrip("*") for node in self.nodes if node.op == "placeholder"]
        return {**dict(zip(names, batch[0], strict=False)), **batch[1]}

    def _value(self, node: fx.Node, number: int) -> object:
        if node.op == "get_attr":
            return attribute(self.gm, str(node.target))
        if node.target is dequantize_weight or node.target in (unpack_4bit, widen):
            if node not in self.made:
                self.made[node] = self._run(node, number)
            return self.made[node]
        if node.target is dequantize and node not in self.held[number]:
            self.held[number][node] = self._run(node, number)
        return self.held[number][node]

    def _run(self, node: fx.Node, number: int) -> object:
        if node.op == "placeholder":
            given = self.given[number]
            return given[str(node.target)] if str(node.target) in given else node.args[0]
        args, kwargs = fx.node.map_aggregate(  # type: ignore[misc]
            (node.args, dict(node.kwargs)),
            lambda x: self._value(x, number) if isinstance(x, fx.Node) else x,  # type: ignore[arg-type,return-value]
        )
        if node.op == "call_function":
            assert callable(node.target)
            return node.target(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        with torch.no_grad():
            return self.gm.get_submodule(str(node.target))(*args, **kwargs)
