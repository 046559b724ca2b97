"""Patterns and rules: local rewrites that run to a fixpoint.

A pattern is a chain of links in forward order, as the model reads: each link's node feeds the next one as its first argument
and nothing else uses it. The links' names are the parameters of the rewrite:

    Rule("absorb_clamp", (Link("producer", takes_bounds), Link("clamp", is_clamp)), rewrite=absorb_clamp)

The rewrite changes the graph and returns None, or raises Reject with a reason for people. A rule must shrink the graph, so the
fixpoint ends; the driver names the rule that exceeds its step limit. Each node that a rule could have taken away and that is
left in the end has a Rejection, with the reason. A gate is asked once for each match, so that its questions can be numbered.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from qcompiler.errors import PassError
from qcompiler.ir.readers import Readers
from qcompiler.ir.text import format_target
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
    """A pattern and its rewrite. `rewrite(match, **nodes)` edits the graph or raises Reject.

    `candidate`: the link whose node the rule is there to take away (default: the last one); remarks are about that node.
    """

    name: str
    pattern: tuple[Link, ...]
    rewrite: Callable[..., None]
    candidate: str | None = None

    @property
    def position(self) -> int:
        """The candidate's place in the pattern."""
        names = [link.name for link in self.pattern]
        return names.index(self.candidate) if self.candidate else len(names) - 1


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
    """A candidate that stays, for the remarks. `node` is the candidate."""

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
            known = [previous, *found]
            node = known[max(0, rule.position - len(rule.pattern) + len(known))]
            return Rejection(rule.name, "several-users", f"%{previous.name} is also used by {_others(previous, found[0])}", node)
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


Gate = Callable[[Rule, fx.Node], bool]


def _open(rule: Rule, node: fx.Node) -> bool:
    return True


class _Run:
    """One run of rules to their fixpoint: what fired, what was refused in the last round, what the gate said."""

    def __init__(self, gm: fx.GraphModule, rules: Sequence[Rule], table: Table, gate: Gate) -> None:
        self.gm, self.rules, self.table, self.gate = gm, rules, table, gate
        self.fired: dict[str, int] = {}
        self.refused: dict[tuple[str, fx.Node], Rejection] = {}
        self.answers: dict[Any, bool] = {}

    def apply(self, node: fx.Node) -> str | None:
        """Rewrites the first match that ends in `node`, and returns the rule's name."""
        for rule, chain in candidates(self.rules, self.table, node):
            if isinstance(chain, Rejection):
                self.refused[rule.name, chain.node] = chain
                continue
            candidate = chain[rule.position]
            try:
                if not self._allowed(rule, chain):
                    raise Reject("held-back", "this rewrite was held back, by QCOMPILER_BISECT or an instrument")
                rule.rewrite(Match(self.gm, self.table, chain), **{link.name: n for link, n in zip(rule.pattern, chain, strict=True)})
            except Reject as reject:
                self.refused[rule.name, candidate] = Rejection(rule.name, reject.code, str(reject), candidate)
                continue
            self.fired[rule.name] = self.fired.get(rule.name, 0) + 1
            return rule.name
        return None

    def _allowed(self, rule: Rule, chain: tuple[fx.Node, ...]) -> bool:
        """The gate's answer; a match that was refused and is met again in the next round is not a new question."""
        key = (rule.name, chain)
        if key not in self.answers:
            self.answers[key] = self.gate(rule, chain[rule.position])
        return self.answers[key]

    def rejections(self) -> list[Rejection]:
        """One for each rule and candidate that is left, in the order of the graph."""
        found = []
        for node in self.gm.graph.nodes:
            row = self.table.of(node)
            for rule in self.rules if row is not None else ():
                if rule.pattern[rule.position].matches(row):
                    found.append(self.refused.get((rule.name, node)) or self._unmatched(rule, node))
        return found

    def _unmatched(self, rule: Rule, node: fx.Node) -> Rejection:
        """Why no chain was found: what stands before the candidate, or behind it, is not what the rule takes."""
        before = rule.position > 0
        neighbours = node.args[:1] if before else tuple(itertools.islice(node.users, LISTED))
        names = ", ".join(f"%{n.name} ({self._op(n)})" for n in neighbours if isinstance(n, fx.Node))
        links = rule.pattern[rule.position - 1 if before else min(1, len(rule.pattern) - 1)]
        wanted = f"not {' or '.join(links.ops)}" if isinstance(links.ops, tuple) else "no op that can take it in"
        side = "before" if before else "behind"
        return Rejection(rule.name, "no-partner", f"{side} %{node.name} stands {names or 'nothing'}, {wanted}", node)

    def _op(self, node: fx.Node) -> str:
        row = self.table.of(node)
        plain = {"placeholder": "an input", "get_attr": "a parameter", "output": "the output", "call_module": "a module"}
        return row.name if row is not None else plain.get(node.op) or format_target(node.target)


def run_rules(gm: fx.GraphModule, rules: Sequence[Rule], table: Table, gate: Gate = _open) -> tuple[dict[str, int], list[Rejection]]:
    """Applies the rules until none fires; returns how often each did, and the candidates that are left in the end."""
    run = _Run(gm, rules, table, gate)
    limit = 4 * len(gm.graph.nodes) + 100  # each firing shrinks the graph or turns a node into its final form
    while True:
        run.refused.clear()
        before = sum(run.fired.values())
        with Readers(gm):
            for node in list(gm.graph.nodes):
                if node._erased:
                    continue
                name = run.apply(node)
                if sum(run.fired.values()) > limit:
                    raise PassError(f"rule {name} does not come to an end", code="rewrite-limit", where=where(node))
        if sum(run.fired.values()) == before:
            return run.fired, run.rejections()
