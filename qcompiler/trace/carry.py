"""What a forward keeps from one call to the next becomes state of the graph.

The first trace shows which places forward changes (`slots`). If it changes none, that is all. Else the model is traced as in a
second call, with what the first left: tensors there that depend on data are reads of states now, and so is what the second call
changes once more. What no result needs is no state (a map that is kept for a look at it), what the second call finds as it
needs it is a memo. Where a state starts as nothing, the trace of the first call says with what (`align`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import fx

from qcompiler.errors import InputError, TraceError, Where
from qcompiler.ops.state import write_state
from qcompiler.ops.state_nodes import NUMBERS, is_write, unset
from qcompiler.trace.align import Traces, align, merge
from qcompiler.trace.attempt import Attempt, Start, StateFound, is_state, owned, run
from qcompiler.trace.finish import finish, live_nodes, live_states
from qcompiler.trace.guards import TraceRemark, is_guard
from qcompiler.trace.hold_relied import hold
from qcompiler.trace.learned_parts import NewPart
from qcompiler.trace.numbers import Again
from qcompiler.trace.operands import Elsewhere
from qcompiler.trace.other_sizes import NotThisSize
from qcompiler.trace.other_ways import Instead, OtherWays
from qcompiler.trace.refusals import HINT, Refusals, Refused
from qcompiler.trace.same import alike, as_later, equal, held_tensor, kind_of, same_leaf
from qcompiler.trace.slots import MISSING, leaves, nested
from qcompiler.trace.starts import proven
from qcompiler.trace.state import Place, Places
from qcompiler.trace.state_reads import held_by
from qcompiler.trace.tracer import Tracer

HINT_ELSEWHERE = ("give forward the value as an argument and return the new one, or keep it in an attribute of the module; make the "
                  "model anew, since the trace could not put back what was kept there")  # fmt: skip
_ROUNDS = 4  # later calls that add a place: what has one more in each of them grows


class Carrier:
    """Traces a model with what it keeps between calls. `make`: a new tracer of the model; `forward`: runs forward under it."""

    def __init__(self, make: Callable[[], Tracer], forward: Callable[[Tracer], object], places: Places) -> None:
        self.make, self.forward, self.places = make, forward, places
        self._refusals = Refusals(places)
        self.kept: dict[str, str] = {}
        self.forced: dict[Place, object] = {}  # plain tensors that forward changes in place

    def traced(self) -> tuple[fx.GraphModule, list[TraceRemark]]:
        """The graph and the remarks. Raises TraceError where the root keeps what cannot be carried."""
        while True:
            try:
                return self._traced()
            except Refused as refused:
                self._keep(refused)

    def _keep(self, refused: Refused) -> None:
        for path, (reason, source) in refused.reasons.items():
            if path == "" or path in self.kept or self.make().options.strict:
                raise TraceError(reason, where=Where(module_path=path, source=source), hint=HINT)
            self.kept[path] = reason
        self.forced = {place: value for place, value in self.forced.items() if not owned(self.places.owner(place), list(self.kept))}

    def _run(self, start: Start, instead: Instead | None = None) -> Attempt:
        tracer = self.make()
        if instead is not None:
            tracer.instead, tracer.otherwise = instead.given, instead.made
        tracer.modules.kept, tracer.leaf_calls.explicit_states = self.kept, start.watched is not None
        self.places.is_later = bool(start.given)
        try:
            return run(tracer, self.places, start, self.forward)
        except Elsewhere as found:
            raise TraceError(str(found.error), where=found.error.where, hint=HINT_ELSEWHERE) from None

    def _first(self) -> Attempt:
        while True:
            try:
                return self._run(Start(self.forced))
            except StateFound as found:
                if found.place in self.forced or found.place in self.places.shared:
                    raise self._refusals.refusal({found.place: "is changed in place and has a second name"}, None) from None
                self.forced[found.place] = self.places.first(found.place)

    def _traced(self) -> tuple[fx.GraphModule, list[TraceRemark]]:
        first = self._first()
        self._refusals.check_parameters(first)
        self._refusals.check_things(first)
        if first.repointed:
            raise self._refusals.refusal(dict.fromkeys(first.repointed, "is given other memory by `set_`"), first)
        self._refusals.check_modes(first)
        left = {place: value for place, value in first.left.items() if not (place in self.forced and alike(value, self.forced[place]))}
        if not left and not first.unstable:
            if any(self.places.of_memory(tensor) is None for tensor in first.tracer.attributes.outside):
                first = self._run(Start(self.forced))  # it meets what the first call left in a place that the walk does not know
            return self._finished(first, self.forced, self._initial(first, self.forced))
        carried = {place: first.left.get(place, value) for place, value in self.forced.items()}
        carried |= {place: value for place, value in left.items() if place in first.data}
        later, carried, numbers, known = self._later(first, carried, left)
        self._refusals.check_leaves(first, later)
        live = self._live(later)
        later.unstable |= {p: "is changed in place and has a second name" for p in later.in_place if p in first.shared}
        self._refusals.check_stable(later, live)
        if not live:
            self._refusals.check_equal(first, later, known)
            return self._finished(first, carried, self._initial(first, self.forced))
        return self._joined(first, later, carried, numbers, known)

    def _later(
        self, first: Attempt, carried: dict[Place, object], left: dict[Place, object]
    ) -> tuple[Attempt, dict[Place, object], dict[Place, object], dict[Place, object]]:
        """A call that finds what an earlier one left, and which places are states there, which of them for their numbers."""
        known, numbers = dict(left), dict[Place, Any]()
        grown = 0
        while grown < _ROUNDS:
            given = {place: value for place, value in known.items() if place not in carried}
            try:
                later = self._run(Start(carried, numbers, given))
            except StateFound as found:
                carried[found.place] = self.forced[found.place] = self.places.first(found.place)
                continue
            new = {place: value for place, value in later.left.items() if place not in carried
                   and (place in later.data or not equal(value, known.get(place)))}  # fmt: skip
            counted = [place for place in carried if place not in numbers and self._counts(place, carried[place], later.left.get(place))]
            if not new and not counted:
                return later, carried, numbers, known
            self._refusals.check_kinds(new, known)
            known |= new
            carried |= new
            numbers |= dict.fromkeys([*new, *counted])
            grown += all(self.places.first(place) is MISSING for place in new)
        later.unstable |= dict.fromkeys(new, "grows or changes its kind with each call")
        return later, carried, numbers, known

    def _counts(self, place: Place, before: object, after: object) -> bool:
        """Whether a number in what a place holds is another one after the call."""
        old, new = leaves(before, ""), leaves(after, "")
        return any(type(value) in NUMBERS and path in new and not same_leaf(value, new[path]) for path, value in old.items())

    def _joined(
        self, first: Attempt, later: Attempt, carried: dict[Place, object], numbers: dict[Place, object], known: dict[Place, object]
    ) -> tuple[fx.GraphModule, list[TraceRemark]]:
        """The graph of a later call with the starts of its states from a first one."""
        later = self._with_memos(later, carried, numbers, known)
        starts = {place: start for place, value in carried.items() if (start := self._start(place, value)) is not None}
        begun = self._run(Start(starts, numbers, watched=list(carried)))
        one, two = (Traces(a.tracer.graph, a.ends, a.tracer.attributes.constants) for a in (begun, later))
        live = sorted(self._live(later))
        self._check_growing(later, carried, numbers)
        found = align(one, two, live)
        if found is None:
            open_states = [name for name in live if name not in begun.held]
            found = proven(one, two, (begun.tracer, later.tracer), open_states)
        if found is None:
            without = dict.fromkeys((p for p in carried if p not in starts), "has no value at the first call, which differs")
            differing = dict.fromkeys(carried, "makes the first call compute something else than the next")
            raise self._refusals.refusal(without or differing, later)
        started = merge(one, two, found)
        self._write_starts(later, started)
        initial = self._initial(later, carried) | {name: unset(later.tracer.held[name]) for name in started}
        return self._finished(later, carried, initial)

    def _with_memos(
        self, later: Attempt, carried: dict[Place, object], numbers: dict[Place, object], known: dict[Place, object]
    ) -> Attempt:
        """The later call with memos as they were before the first call: it makes them again, for sizes that no example had."""
        if all(place in carried for place in known):
            return later
        try:
            again = self._run(Start(carried, numbers))
        except (TraceError, StateFound):
            return later
        same = equal(again.results, later.results) and not again.unstable and self._live(again) == self._live(later)
        return again if same else later

    def _start(self, place: Place, value: object) -> object:
        """What a carried place holds before the first call, in the form of the later ones; None where it holds nothing like it."""
        first = self.places.first(place)
        name = self.places.name(place)
        if first is MISSING or first is None:
            return None
        before, after = leaves(first, name), leaves(value, name)
        if list(before) != list(after) or any(kind_of(a) != kind_of(b) for a, b in zip(before.values(), after.values(), strict=True)):
            return None
        return nested(lambda path, leaf: as_later(leaf, after[path]), first, name)

    def _initial(self, made: Attempt, carried: Iterable[Place]) -> dict[str, torch.Tensor]:
        """By name of a state, the tensor that holds it before the first call."""
        found: dict[str, torch.Tensor] = {}
        for place in carried:
            first = self.places.first(place)
            for path, leaf in leaves(first, self.places.name(place)).items() if first is not MISSING else ():
                if path in made.held and is_state(leaf):
                    found[path] = held_tensor(leaf, made.tracer.held[path])
        return found

    def _check_growing(self, later: Attempt, carried: Mapping[Place, object], numbers: Mapping[Place, object]) -> None:
        """A guard on the size of a state that changes its shape would refuse the next call: what that call would see is tried."""
        live = self._live(later)
        moved = [place for place in carried if any(self._refusals.is_at(name, place) for name in later.moved if name in live)]
        if not moved:
            return
        try:
            again = self._run(Start({place: later.left.get(place, value) for place, value in carried.items()}, numbers, later.given))
            fixed = _fixed(again) == _fixed(later)
        except TraceError:
            fixed = False
        if not fixed:
            raise self._refusals.refusal(
                dict.fromkeys(moved, "changes its shape with each call, and forward holds a size of it fixed"), later
            )

    def _again(self, start: Start, live: list[str], instead: Instead) -> tuple[Tracer, list[fx.Node]] | None:
        """The model traced on other values; None where it cannot be, NotThisSize where it does not run on them."""
        try:
            tracer = self._run(start, instead).tracer
        except InputError:
            raise NotThisSize from None
        except (Exception, StateFound, Again, NewPart):
            return None
        return tracer, live_nodes(tracer.graph, live)

    # ---- the result

    def _live(self, made: Attempt) -> list[str]:
        return live_states(made.tracer.graph, self._buffers(made))

    def _buffers(self, made: Attempt) -> list[str]:
        """States that are buffers of the model are kept whether or not a result needs them: they are in its state_dict."""
        return [self.places.name(place) for place in made.left if self.places.is_buffer(place) and self.places.name(place) in made.held]

    def _write_starts(self, later: Attempt, started: list[str]) -> None:
        """A state that a first call alone sets is set at each call, to what it holds."""
        graph = later.tracer.graph
        written = {held_by(node) for node in graph.nodes if is_write(node)}
        output = next(node for node in reversed(graph.nodes) if node.op == "output")
        for name in started:
            if name not in written:
                read = later.ends[name]
                with graph.inserting_before(output):
                    node = graph.call_function(_write_of(read), (read.args[0], read))
                node.meta = dict(read.meta)

    def _finished(
        self, made: Attempt, carried: Iterable[Place], initial: dict[str, torch.Tensor]
    ) -> tuple[fx.GraphModule, list[TraceRemark]]:
        live = self._live(made)
        nodes = live_nodes(made.tracer.graph, live)
        hold(made.tracer, set(nodes), OtherWays((made.tracer, nodes), functools.partial(self._again, made.start, live)).judge)
        made.tracer.held = initial
        gm, remarks = finish(made.tracer, live)
        unread: dict[str, str] = {}
        for place in carried:
            name, owner = self.places.name(place), self.places.owner(place)
            if any(self._refusals.is_at(state, place) for state in live):
                text = f"what forward keeps in `{name}` is carried from call to call, in a buffer of that name"
                remarks.append(TraceRemark("state", Where(module_path=owner), text))
            else:
                unread[self.places.list_of(place)] = owner
        for name, owner in unread.items():
            text = f"forward sets `{name}`, and no result needs it: the compiled module does not keep it"
            remarks.append(TraceRemark("state", Where(module_path=owner), text))
        return gm, remarks


def _write_of(read: fx.Node) -> Callable[..., Any]:
    return next((write for reader, write, _ in NUMBERS.values() if reader is read.target), write_state)


def _fixed(made: Attempt) -> list[object]:
    """What the guards of a trace hold fixed, in order."""
    return [node.args[1] for node in made.tracer.graph.nodes if is_guard(node)]
