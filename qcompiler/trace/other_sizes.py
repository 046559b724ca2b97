"""Runs a part of a traced graph on shapes alone, at other sizes and layouts of what it is given: which values have memory in common there.

Inputs, and what only the user's own code or data can tell, are made as they were in the example, with the sizes that are asked for.

The stride of a dimension of size 1 is no part of a layout: a caller's tensor, and what a kernel gives, may have any there, and shapes alone
do not say which one. Some calls look at it all the same (`to(memory_format=...)`, a convolution that chooses its layout). So where a tensor
is both contiguous and channels_last, each run is done with the strides of either.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import fx, nn

from qcompiler.ambient import copied_with_data
from qcompiler.fake_tensors import ShapesAlone, in_silence
from qcompiler.ir.types import value_of
from qcompiler.ops.reference import choose
from qcompiler.trace.cuts import cuts
from qcompiler.trace.float_operands import order_in
from qcompiler.trace.guards import is_guard
from qcompiler.trace.layouts import Layout, channels_last, contiguous, in_order, is_in_either, strides_in
from qcompiler.trace.memory import storage
from qcompiler.trace.nested import map_nested
from qcompiler.trace.proxy import Args, Kwargs
from qcompiler.trace.questions import Question
from qcompiler.trace.relied import Relied
from qcompiler.trace.tracer import Tracer

Place: TypeAlias = tuple[fx.Node, int]  # a tensor and a dimension of it, or a number and NUMBER
Order: TypeAlias = Callable[[int], list[int]]  # of the dimensions in memory, by their number
NUMBER = -1
_CHOICES = 3  # of one model: with more, not every one is tried with every other


class NotThisSize(Exception):
    """The graph does not take these sizes."""


class Unknown(Exception):
    """Nobody can tell without the user's data."""


@dataclass(frozen=True)
class Given:
    """What the inputs, and values that data makes or chooses, are in a run, where they are not as in the example. `order`: what gives
    tensors their strides in dimensions of size 1."""

    sizes: Mapping[Place, int]
    layouts: Mapping[fx.Node, Layout]
    order: Order | None = None


Judge: TypeAlias = Callable[[Mapping[Relied, Hashable], Given], list[Relied]]


class OtherSizes:
    """The runs for what a trace took from its example. `sources`: by tensor that is made, its example's shape; `judge`: of the facts
    that are others somewhere, with how they are there, those that make a difference."""

    def __init__(self, tracer: Tracer, facts: Sequence[Relied], judge: Judge) -> None:
        self.tracer, self.facts, self.judge = tracer, facts, judge
        self.settled: set[Relied] = set()  # what strides that mean nothing cannot change: those of the inputs are held
        self.mode = ShapesAlone()
        self.sources: dict[fx.Node, tuple[int, ...]] = {}
        self.numbers: dict[fx.Node, int] = {}
        self._held: dict[str, object] = {}
        self._modules: dict[str, nn.Module] = {}
        self._nodes = self._needed()
        self._first()
        self._ways = self._other_ways()
        self.bounds = self._bounds()  # what makes sizes of another kind

    def _needed(self) -> list[fx.Node]:
        """What the facts stand on, in order, with the guards on that."""
        wanted = {node for fact in self.facts for node in fact.nodes}
        nodes = list(self.tracer.graph.nodes)
        for node in reversed(nodes):
            if node in wanted and not self._is_source(node):
                wanted.update(_read(node))
        return [n for n in nodes if n in wanted or (is_guard(n) and n.all_input_nodes and all(i in wanted for i in n.all_input_nodes))]

    def _is_source(self, node: fx.Node) -> bool:
        """Whether a value is made instead of computed; what holds a tensor of the caller's is not looked into."""
        if not self._is_made(node) and (node in self.tracer.given or not self._is_pure(node)):
            self._make_source(node)
        return self._is_made(node)

    def _is_made(self, node: fx.Node) -> bool:
        return node in self.sources or node in self.numbers

    def _make_source(self, node: fx.Node) -> None:
        shape = value_of(node).shape
        if shape is not None:
            self.sources[node] = tuple(shape)
        elif node in self.tracer.counted:
            self.numbers[node] = self.tracer.counted[node]
        else:
            raise Unknown(f"%{node.name}")

    def _is_pure(self, node: fx.Node) -> bool:
        """Whether a call runs torch's code alone: the user's may do anything."""
        if node.op == "call_module":
            return type(self.tracer.model.get_submodule(str(node.target))).__module__.startswith("torch.nn.")
        if node.op != "call_function" or is_guard(node) or node.target is choose:
            return True
        name = str(getattr(node.target, "__module__", None) or "torch")
        return name.startswith(("torch", "_operator", "builtins", "math", "qcompiler.ops"))

    def _first(self) -> None:
        """Runs at the example's sizes: what cannot be run there is made from then on."""
        while True:
            try:
                return self._run(_Values(), {}, {})
            except _Lost as lost:
                self._make_source(lost.node)

    def _bounds(self) -> list[tuple[int, int]]:
        """Numbers in the code that cut a size, each with a size that it may cut: what `[:6]` takes is all of it up to 6."""
        found: dict[tuple[int, int], None] = {}
        for node in self._nodes:
            cut = [size for operand in node.all_input_nodes[:1] for size in value_of(operand).shape or ()] or [0]
            found.update(dict.fromkeys((number, size) for number in cuts(node) for size in cut))
        return list(found)

    def differing(self, sizes: Mapping[Place, int], layouts: Mapping[fx.Node, Layout] | None = None) -> list[Relied]:
        """The facts that are others there, and make a difference. NotThisSize where the graph does not run."""
        given, values = Given(sizes, layouts or {}), _Values()
        found = self._found(values, given)
        for order in (contiguous, channels_last) if values.either_layout else ():
            with contextlib.suppress(NotThisSize):  # a call that refuses these strides does so in eager mode as well
                found += [fact for fact in self._found(_Values(order), replace(given, order=order)) if fact not in self.settled]
        return found + (self.by_choice(given) if sizes or layouts else [])

    def by_choice(self, given: Given) -> list[Relied]:
        """The questions that have another answer where data chooses otherwise, and make a difference."""
        found: list[Relied] = []
        asked = [fact for fact in self.facts if isinstance(fact, Question)]
        for way in self._ways if asked else ():
            values = _Values(other_way=way)
            try:
                self._run(values, given.sizes, given.layouts)
            except NotThisSize:
                continue
            except _Lost:
                return list(asked)
            differing: dict[Relied, Hashable] = {fact: fact.found(values) for fact in asked if fact.differs(values)}
            chosen = {node: _strided(value) for node in self._nodes if node in way and isinstance(value := values[node], torch.Tensor)}
            found += self.judge(differing, replace(given, layouts={**given.layouts, **chosen})) if differing else []
        return found

    def _other_ways(self) -> list[frozenset[fx.Node]]:
        """Which choices by data are tried together: each alone, all, and where they are few all combinations."""
        chosen = [node for node in self._nodes if node.target is choose and node not in self.sources]
        counts = range(1, len(chosen) + 1) if len(chosen) <= _CHOICES else (1, len(chosen))
        return [frozenset(some) for n in counts for some in itertools.combinations(chosen, n)]

    def _found(self, values: _Values, given: Given) -> list[Relied]:
        self._run(values, given.sizes, given.layouts)
        differing = {fact: fact.found(values) for fact in self.facts if fact.differs(values)}
        return self.judge(differing, given) if differing else []

    def _run(self, values: _Values, sizes: Mapping[Place, int], layouts: Mapping[fx.Node, Layout]) -> None:
        with in_silence(), self.mode, torch.no_grad():
            for node in self._nodes:
                if self._is_number(node):
                    values[node] = sizes.get((node, NUMBER), self.numbers.get(node))
                    continue
                try:
                    values.take(node, self._value(node, values, sizes, layouts))
                except Exception as error:
                    raise (NotThisSize() if sizes or layouts or values.order else _Lost(node)) from error

    def _is_number(self, node: fx.Node) -> bool:
        """Whether a value is a number that is made; any other argument that is no tensor is as in the example."""
        form = value_of(node).form
        if node.op == "placeholder" and node not in self.sources and type(form and form.value) is int:
            self.numbers.setdefault(node, form.value)  # type: ignore[union-attr]
        return node in self.numbers

    def _value(self, node: fx.Node, values: _Values, sizes: Mapping[Place, int], layouts: Mapping[fx.Node, Layout]) -> object:
        if node in self.sources:
            shape = [sizes.get((node, dim), size) for dim, size in enumerate(self.sources[node])]
            return layouts.get(node, lambda *size: self._as_example(node, *size))(shape, value_of(node).dtype or torch.float32)
        if node.op == "get_attr":
            return self._parameter(node)
        if node.op == "placeholder":
            form = value_of(node).form
            return form.value if form is not None else None
        args, kwargs = values.args(node), values.kwargs(node)
        if node.op == "call_module":
            return self._module(node)(*args, **kwargs)
        if node.target is choose:
            return args[2 if node in values.other_way else 1]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _as_example(self, node: fx.Node, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return in_order(self.order_of(node))(shape, dtype)

    def order_of(self, node: fx.Node) -> list[int]:
        """The dimensions of a tensor that is made from the outermost to the innermost."""
        return order_in(self.tracer, node)

    def _parameter(self, node: fx.Node) -> object:
        path = str(node.target)
        if path not in self._held:
            held = self.tracer.held.get(path, self.tracer.attributes.constants.get(path))
            held = operator.attrgetter(path)(self.tracer.model) if held is None else held
            self._held[path] = self.mode.from_tensor(held.detach(), static_shapes=True) if isinstance(held, torch.Tensor) else held
        return self._held[path]

    def _module(self, node: fx.Node) -> nn.Module:
        path = str(node.target)
        if path not in self._modules:
            module = self.tracer.leaf_calls.replacements.get(path) or self.tracer.model.get_submodule(path)
            self._modules[path] = copied_with_data(module).eval()
        return self._modules[path]


def _strided(value: torch.Tensor) -> Layout:
    """As a tensor lies in memory, in its sizes."""
    strides = value.stride()
    return lambda shape, dtype: torch.empty_strided(tuple(shape), strides, dtype=dtype)


def _read(node: fx.Node) -> list[fx.Node]:
    """What a call needs to be run on shapes: of two values that data chooses from, either."""
    return [n for n in node.args[1:] if isinstance(n, fx.Node)] if node.target is choose else node.all_input_nodes


class _Values(dict[fx.Node, object]):
    """The values of a run, by node. `order`: the layout whose strides new tensors have in dimensions of size 1; `other_way`: which values
    that data chooses are those that the example did not choose."""

    def __init__(self, order: Order | None = None, other_way: frozenset[fx.Node] = frozenset()) -> None:
        super().__init__()
        self.order = order
        self.other_way = other_way
        self.either_layout = False  # whether a new tensor was contiguous and channels_last at once

    def args(self, node: fx.Node) -> Args:
        return tuple(fx.node.map_arg(node.args, self.get))  # type: ignore[arg-type]

    def kwargs(self, node: fx.Node) -> Kwargs:
        return dict(fx.node.map_arg(node.kwargs, self.get))  # type: ignore[arg-type]

    def take(self, node: fx.Node, value: object) -> None:
        """Note the value of a node; a tensor that is no view gets its strides here."""
        self[node] = value if node.op == "get_attr" else map_nested(lambda part: self._laid_out(part, node), value)

    def _laid_out(self, value: object, node: fx.Node) -> object:
        if not isinstance(value, torch.Tensor) or not is_in_either(value) or self._is_view(value, node):
            return value
        self.either_layout = True
        if self.order is None:
            return value
        as_if = strides_in(self.order(value.dim()), value.shape)
        strides = [other if n == 1 else own for n, own, other in zip(value.shape, value.stride(), as_if, strict=True)]
        return value.as_strided(value.shape, strides)

    def _is_view(self, value: torch.Tensor, node: fx.Node) -> bool:
        """Whether a tensor lies in the memory of one that the call was given."""
        given = (self.get(n) for n in node.all_input_nodes)
        return any(isinstance(one, torch.Tensor) and storage(one) == storage(value) for one in given)


class _Lost(Exception):
    """A node that cannot be run on shapes alone."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__(node.name)
        self.node = node
