"""Rules: local rewrites that run to a fixpoint. What a pattern is stands in `matching.py`.

    Rule("absorb_clamp", (Link("producer", takes_bounds), Link("clamp", is_clamp)), absorb, check=can_absorb)

The names of the pattern are the parameters of `check` and `rewrite`. `check` raises Reject with a reason for people and changes nothing;
`rewrite` changes the graph. A rule must shrink the graph or turn a node into its final form, so the fixpoint ends; the driver names the
rule that exceeds its step limit. The gate is asked once for each match that `check` lets pass, so that its questions can be numbered.

A near miss is a match that does not happen: something else uses an inner node, a call has other settings, or `check` refuses. Each
candidate that is left in the end has a Rejection for each near miss of it, and one where it stands alone and should not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from qcompiler.compile.matching import Known, Link, check_pattern, find
from qcompiler.errors import ConfigError, PassError
from qcompiler.ir.readers import Readers
from qcompiler.ir.text import format_target
from qcompiler.ir.types import SOURCE, Source, source_of
from qcompiler.ir.verify import where
from qcompiler.ops.spec import Op
from qcompiler.ops.table import Table

__all__ = ["Link", "Match", "Reject", "Rejection", "Rule", "becomes", "merged_source", "run_rules"]

LISTED = 8  # users that a remark names


class Reject(Exception):
    """A match that must not be rewritten; `code` is stable, the text says why to a person."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True)
class Rule:
    """A pattern, what forbids a match, and the rewrite: `check(match, **names)` raises Reject, `rewrite(match, **names)` edits the graph.

    A rule without `check` may raise Reject in its rewrite, before it has changed anything. `candidate`: the link whose node the rule is
    there to take away (default: the last one); remarks are about that node. `needs_partner`: one that stands alone has a remark, too.
    `joins_ops`: it makes one op of several that users know, each of which may have a qconfig of its own.
    """

    name: str
    pattern: tuple[Link, ...]
    rewrite: Callable[..., None]
    candidate: str | None = None
    check: Callable[..., None] | None = None
    needs_partner: bool = False
    joins_ops: bool = False

    def __post_init__(self) -> None:
        check_pattern(self.name, self.pattern)
        if self.candidate not in (None, *(link.name for link in self.pattern)):
            raise ConfigError(f"rule {self.name!r} has no link called {self.candidate!r}", code="bad-pattern")

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
        """`by` takes the place of the match up to `last`; it remembers what it was made from."""
        by.meta[SOURCE] = merged_source(self.nodes, source_of(by))
        last.replace_all_uses_with(by)
        for node in reversed(self.nodes):
            if node is not by and not node.users:
                self.gm.graph.erase_node(node)

    def call(self, target: Callable[..., Any], *args: Any, **attributes: Any) -> fx.Node:
        """Puts one canonical call in the place of the whole match."""
        last = self.nodes[-1]
        with self.gm.graph.inserting_before(last):
            made = self.gm.graph.call_function(target, args, attributes)
        made.meta = dict(last.meta)
        self.replace(last, made)
        return made


def becomes(target: Callable[..., object], *names: str, **attributes: object) -> Callable[..., None]:
    """The rewrite to one canonical call of `target` on what these names of the pattern stand for."""

    def rewrite(match: Match, **known: object) -> None:
        match.call(target, *(known[name] for name in names), **attributes)

    return rewrite


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


def _check(rule: Rule, match: Match, known: Known) -> None:
    """Raises Reject where the match is a near miss."""
    for node in match.nodes[:-1]:
        others = [user for user in itertools.islice(node.users, LISTED + len(match.nodes)) if user not in match.nodes]
        if others:
            raise Reject("several-users", f"%{node.name} is also used by {_listed(node, others, match)}")
    for link, node in zip(rule.pattern, match.nodes, strict=True):
        given = {name: value for name, value in node.kwargs.items() if value is not None}
        if link.settings is not None and given != dict(link.settings):
            text = ", ".join(f"{name}={value}" for name, value in given.items()) or "no settings"
            raise Reject("other-settings", f"%{node.name} is called with {text}")
    if rule.check is not None:
        rule.check(match, **known)


def _listed(value: fx.Node, others: list[fx.Node], match: Match) -> str:
    """The users of a value outside the match, the first few by name: a value may have thousands, each with a remark."""
    names = [f"%{user.name}" for user in others[:LISTED]]
    more = len(value.users) - sum(node in value.users for node in match.nodes) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


Gate = Callable[[Rule, fx.Node], bool]


def _open(rule: Rule, node: fx.Node) -> bool:
    return True


class _Run:
    """One run of rules to their fixpoint: what fired, what was refused in the last round, what the gate said."""

    def __init__(self, gm: fx.GraphModule, rules: Sequence[Rule], table: Table, gate: Gate) -> None:
        self.gm, self.rules, self.table, self.gate = gm, rules, table, gate
        self.fired: dict[str, int] = {}
        self.refused: dict[tuple[str, fx.Node], Rejection] = {}
        self.answers: dict[object, bool] = {}

    def apply(self, node: fx.Node) -> str | None:
        """Rewrites the first match that ends in `node`, and returns the rule's name."""
        for rule in self.rules:
            for known in find(rule.pattern, self.table, node):
                nodes = tuple(known[link.name] for link in rule.pattern)
                try:
                    self._rewrite(rule, Match(self.gm, self.table, nodes), known)
                except Reject as reject:
                    key = rule.name, nodes[rule.position]
                    self.refused.setdefault(key, Rejection(rule.name, reject.code, str(reject), key[1]))
                    continue
                self.fired[rule.name] = self.fired.get(rule.name, 0) + 1
                return rule.name
        return None

    def _rewrite(self, rule: Rule, match: Match, known: Known) -> None:
        _check(rule, match, known)
        if not self._allowed(rule, match.nodes):
            raise Reject("held-back", "this rewrite was held back, by QCOMPILER_BISECT or an instrument")
        rule.rewrite(match, **known)

    def _allowed(self, rule: Rule, nodes: tuple[fx.Node, ...]) -> bool:
        """The gate's answer; a match that was refused and is met again in the next round is not a new question."""
        key = (rule.name, nodes)
        if key not in self.answers:
            self.answers[key] = self.gate(rule, nodes[rule.position])
        return self.answers[key]

    def rejections(self) -> list[Rejection]:
        """One for each rule and candidate that is left, in the order of the graph: a near miss, or one that should not stand alone."""
        found = []
        for node in self.gm.graph.nodes:
            row = self.table.of(node)
            for rule in self.rules if row is not None else ():
                if (rule.name, node) in self.refused:
                    found.append(self.refused[rule.name, node])
                elif rule.needs_partner and rule.pattern[rule.position].matches(row):
                    found.append(self._unmatched(rule, node))
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
