"""Holds what a trace took from its example about memory, where other sizes or layouts of the inputs would make it wrong.

The part of the graph that it stands on is run on shapes alone. A size that changes nothing stays free; one that does is held as far as
it has to be: not 1, 1, or the example's. A caller who comes with another one gets an InputError that names the line.
"""

from __future__ import annotations

import itertools
import operator
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import fx
from torch.fx.node import Target

from qcompiler.ir.types import SOURCE, VALUE, Source, Value
from qcompiler.trace.float_operands import lay_out_operands, lies_in
from qcompiler.trace.guards import TraceRemark, guard_bool, guard_int, guard_layout
from qcompiler.trace.layouts import Layout, as_sliced, channels_last, in_order, is_in_either, with_gaps
from qcompiler.trace.other_sizes import NUMBER, Given, Judge, NotThisSize, OtherSizes, Place, Unknown
from qcompiler.trace.questions import Question
from qcompiler.trace.relied import Relied, where
from qcompiler.trace.tracer import Tracer

_TRIES = 12  # of several sizes at once
_LAST = {rank: in_order(channels_last(rank)) for rank in (3, 4, 5)}


def hold(tracer: Tracer, live: set[fx.Node], judge: Judge) -> None:
    """Add the guards that a trace needs, whose live nodes these are. `judge`: of the facts that are others somewhere, those that make a
    difference. Raises TraceError where nobody knows how the facts are at other calls."""
    shared = dict.fromkeys(fact for fact in tracer.shared if fact.matters(live))
    facts: list[Relied] = [*shared, *dict.fromkeys(asked for asked in tracer.asked if not asked.node._erased)]
    held: set[fx.Node] = set()
    while facts:
        facts = [*_hold(tracer, facts, judge, held)]


def _hold(tracer: Tracer, facts: list[Relied], judge: Judge, held: set[fx.Node]) -> list[Question]:
    """Add the guards for some facts. What they stand on besides: how the arguments of code that nobody follows lie in memory."""
    try:
        runs = OtherSizes(tracer, facts, judge)
    except Unknown:
        raise facts[0].unknown() from None
    wrong = runs.differing({})
    asked = {fact for fact in facts if isinstance(fact, Question) and not fact.always}
    if unknown := [fact for fact in wrong if fact not in asked] + runs.by_choice(Given({}, {})):
        raise unknown[0].unknown()
    search = _Search(runs, held)
    if wrong:
        runs.settled = set(asked)
        search.hold_strides(wrong[0])
    search.hold()
    return search.more


@dataclass
class _Search:
    """Looks for the sizes and layouts at which a fact would be another one. `free`: by places that change together, the sizes that may
    be taken; `held`: tensors whose layouts are; `more`: what has to be held for that."""

    runs: OtherSizes
    held: set[fx.Node]
    more: list[Question] = field(default_factory=list)
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

    def hold_strides(self, fact: Relied) -> None:
        """Hold the layouts of the tensors of the caller's whose strides of dimensions of size 1 decide."""
        nodes = [node for node, (_, example) in self.runs.tracer.given.items() if is_in_either(example)]
        if not nodes:
            raise fact.unknown()
        for node in nodes:
            self._guard_layout(node, fact)

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

    def _settle(self, group: tuple[Place, ...], size: int, found: Mapping[int, Relied | None]) -> None:
        wrong = next((fact for fact in found.values() if fact is not None), None)
        allowed = [other for other, fact in found.items() if fact is None]
        if wrong is None:
            self.free[group] = allowed
        elif size != 1 and found.get(1) is not None and all(fact is None for other, fact in found.items() if other != 1):
            self.free[group] = allowed
            self._guard(group, 1, wrong)
        else:
            self._guard(group, None, wrong)

    def _try(self, sizes: Mapping[Place, int], layouts: Mapping[fx.Node, Layout] | None = None) -> list[Relied] | None:
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
        """Tensors of the caller's, and those that nobody can compute here, may be channels_last, transposed or parts of others."""
        sizes = {place: max(sizes) for group, sizes in self.free.items() for place in group if self._size(place) == 1}
        sources = list(self.runs.sources)
        together = [dict.fromkeys((n for n in sources if len(self.runs.sources[n]) == rank), last) for rank, last in _LAST.items()]
        wrong = [facts for layouts in together if len(layouts) > 1 and (facts := self._try(sizes, layouts))]
        for node in sources:
            ones = list(self._ones(node))
            layouts = [(at, layout) for layout in self._layouts(node) for at in (sizes, *ones)]
            layouts += [(at, as_sliced(in_order(self.runs.order_of(node)))) for at in ones]
            found = [facts for at, layout in layouts if (facts := self._try(at, {node: layout}))] or wrong
            if found:
                self._guard_layout(node, found[0][0])

    def _ones(self, node: fx.Node) -> Iterator[dict[Place, int]]:
        """Each dimension of a tensor of the caller's that is or may be of size 1."""
        for dim, size in enumerate(self.runs.sources[node]):
            groups = [group for group, free in self.free.items() if (node, dim) in group and 1 in free]
            if size == 1 or groups:
                yield dict.fromkeys(groups[0], 1) if groups else {}

    def _layouts(self, node: fx.Node) -> Iterator[Layout]:
        dims = list(range(len(self.runs.sources[node])))
        orders = (dims, [*dims[:1], *dims[2:], *dims[1:2]], [*dims[:-2], *dims[:-3:-1]], dims[::-1])
        yield from (in_order(order) for order in map(list, dict.fromkeys(map(tuple, orders))) if order != self.runs.order_of(node))
        yield with_gaps

    # ---- guards

    def _guard(self, group: tuple[Place, ...], other_than: int | None, fact: Relied | None) -> None:
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

    def _guard_layout(self, node: fx.Node, fact: Relied) -> None:
        if node in self.held:
            return
        self.held.add(node)
        tracer, order = self.runs.tracer, self.runs.order_of(node)
        if not lies_in(tracer, node, order):
            raise fact.unknown()
        if node not in tracer.given:
            self.more += lay_out_operands(tracer, node, fact)
        with self._at(node, fact) as add:
            message = _message(f"the layout of {self._name(node)} in memory fixed", fact)
            self._remark(add("call_function", guard_layout, (node, order, message), None), message, fact)

    def _name(self, node: fx.Node) -> str:
        given = self.runs.tracer.given.get(node, (self.runs.tracer.numbers.get(node),))
        return repr(given[0]) if given[0] is not None else f"%{node.name}"

    @contextmanager
    def _at(self, node: fx.Node, fact: Relied | None) -> Iterator[Callable[[str, Target, tuple[object, ...], object], fx.Node]]:
        """What adds nodes behind a value that was given or made, in the name of the line that a fact is about."""
        graph = self.runs.tracer.graph
        behind = next(n for n in reversed(list(graph.nodes)) if n.op == "placeholder") if node.op == "placeholder" else node
        source = fact.source if fact is not None else Source(None, None, "", "")

        def add(op: str, target: Target, args: tuple[object, ...], example: object) -> fx.Node:
            made = graph.create_node(op, target, args)  # type: ignore[arg-type]
            made.meta[VALUE], made.meta[SOURCE] = Value.of(example), source
            return made

        with graph.inserting_before(behind.next):
            yield add

    def _remark(self, guard: fx.Node, message: str, fact: Relied | None) -> None:
        if fact is not None:
            self.runs.tracer.remarks.append(TraceRemark("guard", replace(where(fact.source), node=guard.name), message))


def _message(said: str, fact: Relied | None) -> str:
    return f"the traced model holds {said}" + (f", since {fact.why()}" if fact is not None else "")


def _others(size: int, bounds: Sequence[tuple[int, int]]) -> list[int]:
    """Sizes to try in place of one: near it, near numbers that cut sizes, and where a size that comes of it is near these."""
    tried = [1, 2, 3, size // 2, size - 1, size + 1, size + 2, 2 * size, 3 * size]
    for number, cut in bounds:
        tried += [number - 1, number, number + 1]
        step = max(1, round(size / cut)) if cut else 1
        tried += [round(number * size / cut) + by for by in (-step, 0, step)] if cut else []
    return [other for other in dict.fromkeys(tried) if other > 0 and other != size]
