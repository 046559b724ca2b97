"""What a trace took from its example about memory: which tensors have some in common where one of them is changed in place.

`reshape` of a transposed tensor is a copy, but a view where a dimension is 1; `contiguous` is a copy of one layout and the tensor itself of
another. What the graph computes is right as long as that is as in the example.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from qcompiler.trace.proxy import Proxy
from qcompiler.trace.views import are_pieces, chances, drops


@dataclass(frozen=True)
class Fact:
    """Whether two values have memory in `common`: `user` must be read behind `since` for it to matter."""

    one: fx.Node
    other: fx.Node
    common: bool
    user: fx.Node
    since: fx.Node


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
