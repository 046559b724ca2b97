"""Holds what a trace took from its example about memory, where other sizes or layouts of the inputs would make it wrong.

The part of the graph that it stands on is run on shapes alone. A size that changes nothing stays free; one that does is held as far as
it has to be: not 1, 1, or the example's. A caller who comes with another one gets an InputError that names the line.
"""

from __future__ import annotations

import itertools
import operator
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import fx
from torch.fx.node import Target

from qcompiler.errors import TraceError, Where
from qcompiler.ir.types import SOURCE, VALUE, Source, Value, source_of
from qcompiler.trace import places
from qcompiler.trace.guards import TraceRemark, guard_bool, guard_int, guard_layout
from qcompiler.trace.other_sizes import NUMBER, Layout, NotThisSize, OtherSizes, Place, Unknown, in_order, with_gaps
from qcompiler.trace.sharing import Fact
from qcompiler.trace.tracer import Tracer

_TRIES = 12  # of several sizes at once


def hold_sharing(tracer: Tracer, live: set[fx.Node]) -> None:
    """Add the guards that the live nodes of a trace need. Raises TraceError where nobody knows what has memory in common."""
    facts = list(dict.fromkeys(fact for fact in tracer.shared if _matters(fact, live)))
    if not facts:
        return
    try:
        runs = OtherSizes(tracer, facts)
    except Unknown:
        raise _unknown(facts[0]) from None
    if wrong := runs.differing({}):
        raise _unknown(wrong[0])
    _Search(runs).hold()


def _matters(fact: Fact, live: set[fx.Node]) -> bool:
    """Whether a value that a fact is about is read behind the change."""
    nodes = (fact.one, fact.other, fact.user, fact.since)
    if any(node._erased for node in nodes) or fact.user not in live:
        return False
    return fact.user is fact.since or any(user in live and user > fact.since and not _asks_size(user) for user in fact.user.users)


def _asks_size(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target in ("size", "dim")


def _place(fact: Fact) -> tuple[Source, str]:
    """The call that makes a view or a copy, and its line in the words of a guard."""
    node = max(fact.one, fact.other)  # what is made of the other one
    source = source_of(node)
    text = places.text_of(source.file, source.line)
    return source, f"`{text}` ({places.spell(os.path.basename(source.file or ''), source.line)})" if text else f"%{node.name}"


def _unknown(fact: Fact) -> TraceError:
    source, text = _place(fact)
    where = Where(module_path=source.module_path, source=places.spell(source.file, source.line))
    hint = "write .clone() there, or change no tensor in place that is read later"
    return TraceError(f"use of a tensor that may share its memory with one that was changed in place, by {text}", where=where, hint=hint)


@dataclass
class _Search:
    """Looks for the sizes and layouts at which a fact would be another one. `free`: by places that change together, the sizes that may
    be taken; `held`: what each guard holds."""

    runs: OtherSizes
    free: dict[tuple[Place, ...], list[int]] = field(default_factory=dict)

    def hold(self) -> None:
        for place in self._places():
            self._look(place)
        for groups in self._of_one_tensor():
            self._look_at_ones(groups)
        if any(self._differs(sizes) for sizes in self._together()):
            for group in self.free:
                self._guard(group, None, self.runs.facts[0])
        self._look_at_layouts()

    def _places(self) -> list[Place]:
        dims = [(node, dim) for node, shape in self.runs.sources.items() for dim, size in enumerate(shape) if size]
        return [*dims, *((node, NUMBER) for node in self.runs.numbers)]

    def _size(self, place: Place) -> int:
        node, dim = place
        return self.runs.numbers[node] if dim == NUMBER else self.runs.sources[node][dim]

    # ---- one size

    def _look(self, place: Place) -> None:
        if any(place in group for group in self.free):
            return
        size = self._size(place)
        for group in self._groups(place):
            others = _others(size, self.runs.bounds)
            found = {other: fact for other in others if (fact := self._try(dict.fromkeys(group, other))) is not None}
            if found:
                return self._settle(group, size, {other: facts[0] if facts else None for other, facts in found.items()})
        self._guard((place,), None, None)  # no other one that was tried: the model's own

    def _groups(self, place: Place) -> Iterator[tuple[Place, ...]]:
        """What may change together: a size alone, those that equal it in one dimension, all that do."""
        alike = [other for other in self._places() if self._size(other) == self._size(place)]
        yield from dict.fromkeys(((place,), tuple(other for other in alike if other[1] == place[1]), tuple(alike)))

    def _settle(self, group: tuple[Place, ...], size: int, found: Mapping[int, Fact | None]) -> None:
        wrong = next((fact for fact in found.values() if fact is not None), None)
        allowed = [other for other, fact in found.items() if fact is None]
        if wrong is None:
            self.free[group] = allowed
        elif size != 1 and found.get(1) is not None and all(fact is None for other, fact in found.items() if other != 1):
            self.free[group] = allowed
            self._guard(group, 1, wrong)
        else:
            self._guard(group, None, wrong)

    def _try(self, sizes: Mapping[Place, int], layouts: Mapping[fx.Node, Layout] | None = None) -> list[Fact] | None:
        """The facts that are others there; None where the graph does not run."""
        try:
            return self.runs.differing(sizes, layouts)
        except NotThisSize:
            return None

    # ---- several

    def _of_one_tensor(self) -> list[tuple[tuple[Place, ...], ...]]:
        """Free sizes of one tensor, two of them and more: one of a single pixel lies in memory like no other one."""
        of: dict[fx.Node, list[tuple[Place, ...]]] = {}
        for group in self.free:
            for node in dict.fromkeys(node for node, _ in group):
                of.setdefault(node, []).append(group)
        return [some for groups in of.values() for n in range(2, len(groups) + 1) for some in itertools.combinations(groups, n)]

    def _look_at_ones(self, groups: Sequence[tuple[Place, ...]]) -> None:
        """Hold the last of some sizes at other than 1 where a fact is another one when all of them are."""
        if any(1 not in self.free[group] for group in groups):
            return
        if facts := self._try(dict.fromkeys((place for group in groups for place in group), 1)):
            self.free[groups[-1]].remove(1)
            self._guard(groups[-1], 1, facts[0])

    def _together(self) -> Iterator[dict[Place, int]]:
        draw = random.Random(0)
        for _ in range(_TRIES):
            chosen = {group: draw.choice([self._size(group[0]), *sizes]) for group, sizes in self.free.items()}
            yield {place: size for group, size in chosen.items() for place in group}

    def _differs(self, sizes: Mapping[Place, int]) -> bool:
        return bool(self._try(sizes))

    def _look_at_layouts(self) -> None:
        """Tensors of the caller's may be channels_last, transposed or parts of others."""
        sizes = {place: max(sizes) for group, sizes in self.free.items() for place in group if self._size(place) == 1}
        for node in self.runs.sources:
            if node in self.runs.tracer.given:
                found = [facts for layout in self._layouts(node) if (facts := self._try(sizes, {node: layout}))]
                if found:
                    self._guard_layout(node, found[0][0])

    def _layouts(self, node: fx.Node) -> Iterator[Layout]:
        dims = list(range(len(self.runs.sources[node])))
        orders = (dims, [*dims[:1], *dims[2:], *dims[1:2]], [*dims[:-2], *dims[:-3:-1]], dims[::-1])
        yield from (in_order(order) for order in map(list, dict.fromkeys(map(tuple, orders))) if order != self.runs.order_of(node))
        yield with_gaps

    # ---- guards

    def _guard(self, group: tuple[Place, ...], other_than: int | None, fact: Fact | None) -> None:
        """Hold the sizes of a group at the example's, or (`other_than`) anywhere else than there; `fact`: what it is for."""
        for place in group:
            node, dim = place
            what = f"the number {self._name(node)}" if dim == NUMBER else f"the size of dimension {dim} of {self._name(node)}"
            said = f"{what} fixed" if other_than is None else f"{what} other than {other_than}"
            with self._at(node, fact) as add:
                size = node if dim == NUMBER else add("call_method", "size", (node, dim), self._size(place))
                message = _message(said, fact)
                if other_than is None:
                    guard = add("call_function", guard_int, (size, self._size(place), message), None)
                else:
                    equal = add("call_function", operator.eq, (size, other_than), False)
                    guard = add("call_function", guard_bool, (equal, False, message), None)
                self._remark(guard, message, fact)

    def _guard_layout(self, node: fx.Node, fact: Fact) -> None:
        order = self.runs.order_of(node)
        if not self.runs.tracer.given[node][1].permute(order).is_contiguous():
            raise _unknown(fact)
        with self._at(node, fact) as add:
            message = _message(f"the layout of {self._name(node)} in memory fixed", fact)
            self._remark(add("call_function", guard_layout, (node, order, message), None), message, fact)

    def _name(self, node: fx.Node) -> str:
        given = self.runs.tracer.given.get(node, (self.runs.tracer.numbers.get(node),))
        return repr(given[0]) if given[0] is not None else f"%{node.name}"

    @contextmanager
    def _at(self, node: fx.Node, fact: Fact | None) -> Iterator[Callable[[str, Target, tuple[object, ...], object], fx.Node]]:
        """What adds nodes behind a value that was given or made, in the name of the line that a fact is about."""
        graph = self.runs.tracer.graph
        behind = next(n for n in reversed(list(graph.nodes)) if n.op == "placeholder") if node.op == "placeholder" else node
        source = _place(fact)[0] if fact is not None else Source(None, None, "", "")

        def add(op: str, target: Target, args: tuple[object, ...], example: object) -> fx.Node:
            made = graph.create_node(op, target, args)  # type: ignore[arg-type]
            made.meta[VALUE], made.meta[SOURCE] = Value.of(example), source
            return made

        with graph.inserting_before(behind.next):
            yield add

    def _remark(self, guard: fx.Node, message: str, fact: Fact | None) -> None:
        if fact is not None:
            source = _place(fact)[0]
            where = Where(guard.name, source.module_path, places.spell(source.file, source.line))
            self.runs.tracer.remarks.append(TraceRemark("guard", where, message))


def _message(said: str, fact: Fact | None) -> str:
    if fact is None:
        return f"the traced model holds {said}"
    seen, there = ("shares memory", "copies") if fact.common else ("copies", "shares memory")
    why = f"{_place(fact)[1]} {seen} in the example and {there} here, and what has that memory is changed in place"
    return f"the traced model holds {said}, since {why} (compile with an example of this form, or write .clone() at one of the two)"


def _others(size: int, bounds: Sequence[tuple[int, int]]) -> list[int]:
    """Sizes to try in place of one: near it, near numbers that cut sizes, and where a size that comes of it is near these."""
    tried = [1, 2, 3, size // 2, size - 1, size + 1, size + 2, 2 * size, 3 * size]
    for number, cut in bounds:
        tried += [number - 1, number, number + 1]
        step = max(1, round(size / cut)) if cut else 1
        tried += [round(number * size / cut) + by for by in (-step, 0, step)] if cut else []
    return [other for other in dict.fromkeys(tried) if other > 0 and other != size]
