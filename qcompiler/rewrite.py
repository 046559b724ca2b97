"""Patterns and rules: local rewrites that run to a fixpoint.

A pattern is a chain of links in forward order, as the model reads: each link's node feeds the next one as its first argument
and nothing else uses it. The links' names are the parameters of the rewrite:

    Rule("absorb_clamp", (Link("producer", takes_bounds), Link("clamp", is_clamp)), rewrite=absorb_clamp)

The rewrite changes the graph and returns None, or raises Reject with a reason for people. A rule must shrink the graph, so the
fixpoint ends; the driver names the rule that exceeds its step limit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from qcompiler.errors import PassError
from qcompiler.gate import allow
from qcompiler.ir.readers import Readers
from qcompiler.ir.types import SOURCE, Source, source_of
from qcompiler.ir.verify import where
from qcompiler.ops.spec import Op
from qcompiler.ops.table import Table

LISTED = 8  # users that a remark names


class Reject(Exception):
    """A match that must not be rewritten; `code` is stable, the text says why to a person."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True)
class Link:
    """One node of a chain: its name in the rewrite, and which ops it may be (names, or a predicate on the row)."""

    name: str
    ops: tuple[str, ...] | Callable[[Op], bool]

    def matches(self, row: Op | None) -> bool:
        if row is None:
            return False
        return self.ops(row) if callable(self.ops) else row.name in self.ops


@dataclass(frozen=True)
class Rule:
    """A pattern and its rewrite. `rewrite(match, **nodes)` edits the graph or raises Reject."""

    name: str
    pattern: tuple[Link, ...]
    rewrite: Callable[..., None]


@dataclass(frozen=True)
class Match:
    """What a rewrite works with: the module whose graph is edited, the table, and the matched nodes in order."""

    gm: fx.GraphModule
    table: Table
    nodes: tuple[fx.Node, ...]

    def row(self, node: fx.Node) -> Op:
        row = self.table.of(node)
        assert row is not None
        return row

    def replace(self, last: fx.Node, by: fx.Node) -> None:
        """`by` takes the place of the chain up to `last`; it remembers what it was made from."""
        by.meta[SOURCE] = merged_source(self.nodes, source_of(by))
        last.replace_all_uses_with(by)
        for node in reversed(self.nodes):
            if node is not by and not node.users:
                self.gm.graph.erase_node(node)


def merged_source(nodes: Sequence[fx.Node], base: Source) -> Source:
    names = [name for node in nodes for name in (source_of(node).origin or (node.name,))]
    return Source(base.file, base.line, base.module_path, base.module_type, tuple(dict.fromkeys(names)))


@dataclass(frozen=True)
class Rejection:
    """A refused match, for the remarks."""

    rule: str
    code: str
    reason: str
    node: fx.Node


def _chain(rule: Rule, table: Table, last: fx.Node) -> tuple[fx.Node, ...] | Rejection | None:
    """The nodes of a chain that ends in `last`, walking back; a Rejection where only a second user stands in the way."""
    found = [last]
    for link in reversed(rule.pattern[:-1]):
        previous = found[0].args[0] if found[0].args else None
        if not isinstance(previous, fx.Node) or not link.matches(table.of(previous)):
            return None
        if len(previous.users) > 1:
            return Rejection(rule.name, "several-users", f"%{previous.name} is also used by {_others(previous, found[0])}", last)
        found.insert(0, previous)
    return tuple(found)


def _others(value: fx.Node, user: fx.Node) -> str:
    """The users of a value beside `user`, the first few by name: a value may have thousands, each with a remark."""
    names = [f"%{u.name}" for u in itertools.islice(value.users, LISTED + 1) if u is not user][:LISTED]
    more = len(value.users) - 1 - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def candidates(rules: Sequence[Rule], table: Table, node: fx.Node) -> Iterator[tuple[Rule, tuple[fx.Node, ...] | Rejection]]:
    row = table.of(node)
    for rule in rules:
        if rule.pattern[-1].matches(row):
            chain = _chain(rule, table, node)
            if chain is not None:
                yield rule, chain


class _Once:
    """Asks the gate once for each rule and node: a match that was held back or refused comes up again in every round."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, fx.Node], bool] = {}

    def allow(self, rule: Rule, chain: tuple[fx.Node, ...]) -> bool:
        key = (rule.name, chain[-1])
        if key not in self.answers:
            self.answers[key] = allow(f"{rule.name} at {' '.join(f'%{n.name}' for n in chain)}")
        return self.answers[key]


def _apply(
    gm: fx.GraphModule, rules: Sequence[Rule], table: Table, node: fx.Node, refused: dict[Any, Rejection], once: _Once
) -> str | None:
    for rule, chain in candidates(rules, table, node):
        if isinstance(chain, Rejection):
            refused[rule.name, node] = chain
            continue
        if not once.allow(rule, chain):
            continue
        try:
            rule.rewrite(Match(gm, table, chain), **{link.name: n for link, n in zip(rule.pattern, chain, strict=True)})
        except Reject as reject:
            refused[rule.name, node] = Rejection(rule.name, reject.code, str(reject), node)
            continue
        return rule.name
    return None


def run_rules(gm: fx.GraphModule, rules: Sequence[Rule], table: Table) -> tuple[dict[str, int], list[Rejection]]:
    """Applies the rules until none fires; returns how often each did, and the matches refused in the end.

    Each match asks the gate of the context first (qcompiler/gate.py).
    """
    fired: dict[str, int] = {}
    once = _Once()
    limit = 4 * len(gm.graph.nodes) + 100  # each firing shrinks the graph or turns a node into its final form
    while True:
        refused: dict[Any, Rejection] = {}
        before = sum(fired.values())
        with Readers(gm):
            for node in list(gm.graph.nodes):
                if node._erased:
                    continue
                name = _apply(gm, rules, table, node, refused, once)
                if name:
                    fired[name] = fired.get(name, 0) + 1
                if sum(fired.values()) > limit:
                    raise PassError(f"rule {name} does not come to an end", code="rewrite-limit", where=where(node))
        if sum(fired.values()) == before:
            return fired, list(refused.values())
