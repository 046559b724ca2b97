"""A graph that is run piece by piece on several batches, as a walk from one op to the next needs it.

Between two pieces a batch keeps what is still to be read, in a file where that is much. Dequantized values are not kept: their integers
are, which take a quarter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from qcompiler.errors import CalibrationError, InputError, QCompilerError
from qcompiler.inputs.input_text import first_sentence, refuses_inputs
from qcompiler.ir.attributes import attribute
from qcompiler.ir.types import quant_of, value_of
from qcompiler.ir.verify import where
from qcompiler.ops.reference import dequantize, dequantize_weight, quantize, unpack_4bit, widen
from qcompiler.ops.state_nodes import is_write
from qcompiler.prepared.module import InputCheck
from qcompiler.tune.shelf import Shelf, Values

Batch: TypeAlias = tuple[tuple[object, ...], Mapping[str, object]]
AGAIN = (dequantize, dequantize_weight, unpack_4bit, widen)  # cheaper to compute again than to keep


def without_empty(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches that have elements: as in calibration, one of no rows says nothing."""
    for args, kwargs in batches:
        if all(leaf.numel() for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)):
            yield args, kwargs


def _is_rounded(node: fx.Node) -> bool:
    """Whether an input is rounded by int8 ops, in a quantized graph or its float twin."""
    return quant_of(node).group is not None or any(user.target is quantize for user in node.users)


class Lane:
    """One graph and where the batches stand in it. Each batch is taken as a first call: what a model keeps between calls is not written."""

    def __init__(self, gm: fx.GraphModule, batches: Sequence[Batch], first: int = 0) -> None:
        """`first`: the number of the first batch, for messages. Raises InputError, CalibrationError for a batch that does not fit."""
        self.gm, self.nodes = gm, list(gm.graph.nodes)
        self.index = {node: i for i, node in enumerate(self.nodes)}
        self.last = self._last_reads()
        self.at = 0
        self.first = first
        self.given = [self._arguments(batch, first + i) for i, batch in enumerate(batches)]
        self.shelf = Shelf()
        self.open = -1  # the number of the batch whose values are `held`
        self.held: Values = {}
        self.made: dict[fx.Node, object] = {}  # of this piece, the same for all batches

    def __len__(self) -> int:
        return len(self.given)

    def visit(self, node: fx.Node) -> Iterator[int]:
        """Brings one batch after the other up to the node, which is not run, and gives its number. To be gone through to the end."""
        end = self.index[node]
        piece = self.nodes[self.at : end]
        self.made = {}
        for number in range(len(self)):
            self.open, self.held = number, self.shelf.take(number)
            for step in piece:
                if self._runs(step):
                    self.held[step] = self._tried(step, number)
                    self._drop(step)
            yield number
            for kept in [n for n in self.held if self.last[n] < end or n.target is dequantize]:
                del self.held[kept]
            self.shelf.put(number, self.held)
        self.at, self.made, self.open, self.held = end, {}, -1, {}
        self.shelf.turn()

    def advance(self, node: fx.Node) -> None:
        """Runs all batches up to the node, which is not run."""
        for _ in self.visit(node):
            pass

    def value(self, node: object, number: int) -> Tensor:
        """What a node of the piece behind has of one batch: cheap for that which `visit` is at."""
        assert isinstance(node, fx.Node)
        if self.open != number:
            self.open, self.held = number, self.shelf.look(number)
        found = self._value(node, number)
        assert isinstance(found, Tensor)
        return found

    def _runs(self, node: fx.Node) -> bool:
        return node.op != "output" and node.op != "get_attr" and node.target not in AGAIN and not is_write(node)

    def _drop(self, done: fx.Node) -> None:
        """Forgets what was read for the last time."""
        for source in done.all_input_nodes:
            if self.last.get(source, -1) <= self.index[done]:
                self.held.pop(source, None)

    def _last_reads(self) -> dict[fx.Node, int]:
        """By node the place of its last reader, seen through what is computed again."""
        last: dict[fx.Node, int] = {}
        for node in reversed(self.nodes):
            last.setdefault(node, self.index[node])
            read = last[node] if node.target in AGAIN else self.index[node]
            for source in node.all_input_nodes:
                last[source] = max(last.get(source, -1), read)
        return last

    def _arguments(self, batch: Batch, number: int) -> dict[str, object]:
        (args, kwargs), inputs = batch, [node for node in self.nodes if node.op == "placeholder"]
        check = InputCheck([(str(node.target), value_of(node), bool(node.args)) for node in inputs])
        try:
            args, kwargs = check(self.gm, args, dict(kwargs)) or (args, kwargs)
        except QCompilerError as error:
            raise type(error)(f"batch {number}: {error.message}", code=error.code, where=error.where, hint=error.hint) from error
        given = {**dict(zip((str(node.target).lstrip("*") for node in inputs), args, strict=False)), **kwargs}
        rounded = {str(node.target).lstrip("*") for node in inputs if _is_rounded(node)}
        for name, value in given.items():
            if not isinstance(value, Tensor) or not value.is_floating_point() or bool(value.isfinite().all()):
                continue
            if name in rounded or bool(value.isnan().any()):  # a mask that stays float is made of 0 and -inf
                raise CalibrationError(f"batch {number}: NaN or inf in {name}", code="nan", hint="look at this batch")
        return given

    def _tried(self, node: fx.Node, number: int) -> object:
        """What a node gives; torch's errors are about the batch."""
        try:
            return self._run(node, number)
        except Exception as error:
            if isinstance(error, QCompilerError) or not refuses_inputs(error):
                raise
            text = f"batch {self.first + number}: {type(error).__name__}: {first_sentence(error)}"
            raise InputError(text, code="input-shape", where=where(node), hint="does the float model take this input?") from error

    def _value(self, node: fx.Node, number: int) -> object:
        if node.op == "get_attr":
            return attribute(self.gm, str(node.target))
        if node.target is dequantize_weight or node.target in (unpack_4bit, widen):
            if node not in self.made:
                self.made[node] = self._run(node, number)
            return self.made[node]
        if node.target is dequantize and node not in self.held:
            self.held[node] = self._run(node, number)
        return self.held[node]

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
