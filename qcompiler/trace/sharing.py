"""What a trace took from its example about memory: which tensors have some in common where one of them is changed in place.

`reshape` of a transposed tensor is a copy, but a view where a dimension is 1; `contiguous` is a copy of one layout and the tensor itself of
another. What the graph computes is right as long as that is as in the example.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterator, Mapping
from dataclasses import dataclass

from torch import fx

from qcompiler.errors import TraceError
from qcompiler.ir.types import Source, source_of
from qcompiler.trace.memory import overlap
from qcompiler.trace.proxy import Proxy
from qcompiler.trace.relied import line, where
from qcompiler.trace.views import are_pieces, chances, drops


@dataclass(frozen=True)
class Fact:
    """Whether two values have memory in `common`: `user` must be read behind `since` for it to matter."""

    one: fx.Node
    other: fx.Node
    common: bool
    user: fx.Node
    since: fx.Node

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        return self.one, self.other

    @property
    def source(self) -> Source:
        return source_of(max(self.nodes))  # what is made of the other one

    def differs(self, values: Mapping[fx.Node, object]) -> bool:
        return overlap(values[self.one], values[self.other]) is not self.common  # type: ignore[arg-type]

    def found(self, values: Mapping[fx.Node, object]) -> Hashable:
        return not self.common

    def matters(self, live: Container[fx.Node]) -> bool:
        """Whether a value that this is about is read behind the change."""
        nodes = (self.one, self.other, self.user, self.since)
        if any(node._erased for node in nodes) or self.user not in live:
            return False
        return self.user is self.since or any(user in live and user > self.since and not _asks_size(user) for user in self.user.users)

    def why(self) -> str:
        seen, there = ("shares memory", "copies") if self.common else ("copies", "shares memory")
        why = f"{self._line()} {seen} in the example and {there} here, and what has that memory is changed in place"
        return f"{why} (compile with an example of this form, or write .clone() at one of the two)"

    def unknown(self) -> TraceError:
        text = f"use of a tensor that may share its memory with one that was changed in place, by {self._line()}"
        hint = "write .clone() there, or change no tensor in place that is read later"
        return TraceError(text, where=where(self.source), hint=hint)

    def _line(self) -> str:
        return line(self.source) if self.source.file else f"%{max(self.nodes).name}"


def _asks_size(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target in ("size", "dim")


@dataclass(frozen=True)
class Before:
    """A variable and another one that is about to be changed in place: their nodes, and the calls that made views of them, perhaps.
    `by_mode`: one of these is a dropout, which makes a copy in training."""

    variable: Proxy
    node: fx.Node
    changed: fx.Node
    apart: bool  # they are pieces of one tensor
    chances: list[tuple[fx.Node, fx.Node]]
    by_mode: bool


def before(changed: Proxy, other: Proxy) -> Before:
    """What a variable is to another one before that is changed."""
    one, two = chances(changed), chances(other)
    ways = [p for p in one if not any(p is q for q in two)] + [q for q in two if not any(p is q for p in one)]
    views = [(proxy, proxy.view_of) for proxy in ways if proxy.view_of is not None]
    made = [(view.parent.node, proxy.node) for proxy, view in views]
    return Before(other, other.node, changed.node, are_pieces(changed, other), made, any(drops(view) for _, view in views))


def relied_on(one: Before, last: fx.Node) -> Iterator[Fact]:
    """What the value of a variable behind the change relies on; `last`: the last node that the change added."""
    if one.variable.stale is not None:
        return
    if one.variable.node is one.node:
        if not one.apart:
            yield Fact(one.changed, one.node, False, one.node, last)
        return
    yield from (Fact(parent, view, True, one.variable.node, one.variable.node) for parent, view in one.chances)
