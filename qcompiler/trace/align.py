"""The graph of a first call beside that of a later one: what the first has where the later reads a state is how the state starts."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from qcompiler.ir.types import VALUE, value_of
from qcompiler.ops.state import read_state_or
from qcompiler.ops.state_nodes import is_read
from qcompiler.trace.guards import is_guard
from qcompiler.trace.state_reads import held_by


@dataclass
class Traces:
    """A traced graph, the value that each state has at its end, and the constants that its get_attr nodes name."""

    graph: fx.Graph
    ends: dict[str, Any]
    constants: dict[str, torch.Tensor]


@dataclass
class Aligned:
    """`starts`: by state, the node of the first call that stands for its read, or None where both calls read it."""

    same: dict[fx.Node, fx.Node] = field(default_factory=dict)  # of the first call -> of the later one
    starts: dict[str, fx.Node | None] = field(default_factory=dict)


class _Mismatch(Exception):
    pass


def align(first: Traces, later: Traces, live: list[str]) -> Aligned | None:
    """How the states of a later call start, where the graphs are equal but for the reads of states; None where they are not."""
    matcher = _Matcher(first, later)
    roots = [(_output(first.graph), _output(later.graph))]
    if any(name not in first.ends or name not in later.ends for name in live):
        return None
    roots += [(first.ends[name], later.ends[name]) for name in live]
    try:
        for a, b in roots:
            matcher.match(a, b)
        matcher.settle()
    except _Mismatch:
        return None
    return matcher.found


def _output(graph: fx.Graph) -> object:
    return next(node for node in reversed(graph.nodes) if node.op == "output").args


class _Matcher:
    def __init__(self, first: Traces, later: Traces) -> None:
        self.first, self.later = first, later
        self.found = Aligned()
        self.partner: dict[fx.Node, fx.Node] = {}  # of the later call -> of the first one
        self.todo: list[tuple[fx.Node, fx.Node]] = []

    def match(self, a: object, b: object) -> None:
        """Raise _Mismatch unless two arguments are equal; their nodes are compared later, so that no graph is too deep."""
        if isinstance(a, fx.Node) and isinstance(b, fx.Node):
            self.todo.append((a, b))
        elif isinstance(a, (tuple, list)) and type(a) is type(b) and len(a) == len(b):
            for left, right in zip(a, b, strict=True):
                self.match(left, right)
        elif isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b):
            for key in a:
                self.match(a[key], b[key])
        elif isinstance(a, slice) and isinstance(b, slice):
            self.match((a.start, a.stop, a.step), (b.start, b.stop, b.step))
        elif type(a) is not type(b) or (a is not b and a != b):
            raise _Mismatch

    def settle(self) -> None:
        while self.todo:
            a, b = self.todo.pop()
            if b in self.partner:
                if self.partner[b] is not a:
                    raise _Mismatch
                continue
            self.partner[b] = a
            if is_read(b):
                name = held_by(b)
                self.found.starts[name] = None if is_read(a) and held_by(a) == name else a
                if self.found.starts[name] is not None:
                    continue
            elif not self._same_op(a, b):
                self._match_grown(a, b)
                continue
            self.found.same.setdefault(a, b)
            self.match(_arguments(a), _arguments(b))
            self._match_assignments(a, b)

    def _match_grown(self, a: fx.Node, b: fx.Node) -> None:
        """`cat([state, new])` of a later call beside `new` of the first: the state starts as an empty part of it."""
        parts: Any = b.args[0] if b.target in (torch.cat, torch.concat, torch.concatenate) and b.args else ()
        reads = [part for part in parts if is_read(part)]
        if len(parts) != 2 or len(reads) != 1 or reads[0] in self.partner:
            raise _Mismatch
        dim = b.args[1] if len(b.args) > 1 else b.kwargs.get("dim", 0)
        self.partner[reads[0]] = a
        self.found.starts[held_by(reads[0])] = empty = self.first.graph.call_method("narrow", (a, dim, 0, 0))
        empty.meta = {key: value for key, value in a.meta.items() if key != VALUE}
        shape = value_of(a).shape
        if shape is not None and isinstance(dim, int):
            sizes = [0 if i == dim % len(shape) else size for i, size in enumerate(shape)]
            empty.meta[VALUE] = replace(value_of(a), shape=type(shape)(sizes))
        self.todo.append((a, next(part for part in parts if part is not reads[0])))

    def _match_assignments(self, a: fx.Node, b: fx.Node) -> None:
        """What is stored into a copy belongs to its value."""
        stored = [[user for user in node.users if user.target is operator.setitem and user.args[0] is node] for node in (a, b)]
        if len(stored[0]) != len(stored[1]):
            raise _Mismatch
        for pair in zip(*stored, strict=True):
            if pair[1] not in self.partner:
                self.todo.append(pair)

    def _same_op(self, a: fx.Node, b: fx.Node) -> bool:
        if a.op != b.op:
            return False
        if a.op != "get_attr":
            return bool(a.target == b.target)
        left, right = self.first.constants.get(str(a.target)), self.later.constants.get(str(b.target))
        if left is None or right is None:
            return bool(a.target == b.target and left is right)
        return left.dtype == right.dtype and torch.equal(left, right)


def _arguments(node: fx.Node) -> tuple[object, ...]:
    return () if node.op == "placeholder" else (node.args, node.kwargs)


def common(first: Traces, later: Traces) -> dict[fx.Node, fx.Node]:
    """Nodes of the first call that the later one computes from the inputs alone in the same way."""
    matcher, found = _Matcher(first, later), dict[fx.Node, fx.Node]()
    known: dict[Any, fx.Node] = {}
    for node in later.graph.nodes:
        known.setdefault(_spelled(node, lambda n: n), node)
    for node in first.graph.nodes:
        if any(user.target is operator.setitem for user in node.users) or any(source not in found for source in node.all_input_nodes):
            continue
        other = known.get(_spelled(node, found.__getitem__))
        if other is not None and node.op != "output" and matcher._same_op(node, other):
            found[node] = other
    return found


def _spelled(node: fx.Node, name: Callable[[fx.Node], fx.Node]) -> object:
    """A node's call as something that can be compared and looked up."""
    args = fx.node.map_arg((node.args, node.kwargs), lambda n: name(n))  # type: ignore[arg-type, return-value]
    return node.op, str(node.target), repr(args)


def merge(first: Traces, later: Traces, found: Aligned) -> list[str]:
    """Let each state of the later graph start as in the first call; the names of the states that start with a value computed there."""
    started = [name for name, node in found.starts.items() if node is not None]
    reads = {held_by(node): node for node in later.graph.nodes if is_read(node)}
    inputs = {node.target: node for node in later.graph.nodes if node.op == "placeholder"}
    copies = {node: inputs[node.target] for node in first.graph.nodes if node.op == "placeholder"} | found.same
    for name in started:
        start, read = found.starts[name], reads[name]
        assert start is not None
        read.args = (read.args[0], _copied(start, first, later, copies))
        read.target = read_state_or
    if started:
        for guard in [node for node in first.graph.nodes if is_guard(node)]:
            _copied(guard, first, later, copies)
        _reorder(later.graph)
    return started


def _copied(start: fx.Node, first: Traces, later: Traces, copies: dict[fx.Node, fx.Node]) -> fx.Node:
    """A node of the first graph and what it needs in the later graph, at its beginning."""
    needed, todo = {start}, [start]
    while todo:
        node = todo.pop()
        stored = [user for user in node.users if user.target is operator.setitem and user.args[0] is node]
        more = [source for source in (*node.all_input_nodes, *stored) if source not in needed]
        if node not in copies:
            needed.update(more)
            todo += more
    front = next(node for node in later.graph.nodes if node.op != "placeholder")
    for node in [node for node in first.graph.nodes if node in needed and node not in copies]:
        target = node.target
        if node.op == "get_attr" and target in first.constants:
            target = f"{target}_at_start"
            later.constants[target] = first.constants[str(node.target)]
        args, kwargs = (fx.node.map_arg(part, copies.__getitem__) for part in (node.args, node.kwargs))
        with later.graph.inserting_before(front):
            copies[node] = later.graph.create_node(node.op, target, args, kwargs)  # type: ignore[arg-type]
        copies[node].meta = dict(node.meta)
    return copies[start]


def _reorder(graph: fx.Graph) -> None:
    """Put each node behind what it reads; an assignment into a copy stands right behind the copy."""
    placed: set[fx.Node] = set()
    anchor = graph._root
    for node in list(graph.nodes):
        stack = [node]
        while stack:
            top = stack[-1]
            missing = [source for source in top.all_input_nodes if source not in placed] if top not in placed else []
            if missing:
                stack += missing
                continue
            stack.pop()
            if top in placed:
                continue
            placed.add(top)
            if anchor._next is not top:
                anchor.append(top)
            anchor = top
            stack += [user for user in reversed(top.users) if user.target is operator.setitem and user.args[0] is top]
