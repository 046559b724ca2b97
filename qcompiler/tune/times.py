"""The times that a bound on latency hangs on: of programs, each called in turn with the float model, with a margin that is measured.

Stages whose modules run the same ops are one program, which has one time: they differ in numbers alone. Of a quarter of the calls the
least time counts, since what else the machine does only adds to it. How far the quarters are apart is the margin, and how much faster what
was called at that moment was at another one, and a twentieth: what is nearer to the bound than that is too near to tell.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import fx, nn

from qcompiler.ir.nested import walk
from qcompiler.ir.text import format_target
from qcompiler.tune.clock import Clock
from qcompiler.tune.goal import Goal
from qcompiler.tune.held_out import Item
from qcompiler.tune.let_go import graphs_of
from qcompiler.tune.together import together
from qcompiler.workflow.explain import explain

ROUNDS, WARM = 20, 2  # calls of each module that are timed, and before them
FEW, SHARE = 8, 0.02  # timed calls that are enough where more would take longer than this share of all the time
PARTS = 4  # of the calls
IN_A_ROW = 2  # calls of one module: behind the first, what another one left (its values in caches, threads that still wait) is gone
LONGER = 5  # times as many at most where the bound is too near to tell
SURE = 0.05  # share of a time by which another moment may differ, however alike the quarters of this one are

Program: TypeAlias = str
Leasts: TypeAlias = tuple[float, ...]  # milliseconds: the least of each part of the calls
Moment: TypeAlias = Mapping[Program, Leasts]  # of what was called in turn, the float model among it
FLOAT: Program = "float"


def program_of(module: nn.Module) -> Program:
    """A hash of what a converted module runs, without its numbers and tensors: the ops in order, those in regions as well."""
    texts = [text for row in explain(module).rows for text in (row.node, row.op, row.kind)]
    texts += [text for graph in graphs_of(module) for node in graph.graph.nodes for text in _texts(node)]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _texts(node: fx.Node) -> Iterable[str]:
    """Of a node that computes; what holds a tensor has a name that corrections change, and so has its place in a region."""
    if node.op in ("call_function", "call_method", "call_module"):
        yield format_target(node.target)
        yield from (leaf for leaf in walk((node.args, node.kwargs)) if isinstance(leaf, str) and not leaf.startswith("$"))


@dataclass
class Times:
    """The moments at which programs were timed. The time of one is that of the moment when it was fastest."""

    goal: Goal
    moments: list[Moment] = field(default_factory=list)

    def of(self, program: Program) -> tuple[float, float] | None:
        """(milliseconds, margin); None for what was not timed."""
        moment = self._fastest(program)
        if moment is None:
            return None
        slower = max(min(leasts) / self._least(one) for one, leasts in moment.items())
        least = min(moment[program])
        return least, max(_apart(moment[program]), least * (1 - 1 / slower), SURE * least)

    def _fastest(self, program: Program) -> Moment | None:
        return min((moment for moment in self.moments if program in moment), key=lambda moment: min(moment[program]), default=None)

    def _least(self, program: Program) -> float:
        return min(min(moment[program]) for moment in self.moments if program in moment)

    def _of_float(self, program: Program) -> tuple[float, float] | None:
        """(share of the float model's time, margin): what slows the machine slows both."""
        moment = self._fastest(program)
        if moment is None:
            return None
        shares = [one / other for one, other in zip(moment[program], moment[FLOAT], strict=True)]
        share = min(moment[program]) / min(moment[FLOAT])
        return share, max(_apart(shares), SURE * share)

    def holds(self, program: Program) -> bool | None:
        """Whether the bound holds; None where that is too near to tell, or nothing is known."""
        if self.goal.latency is None:
            return True
        found = self._asked(program)
        if found is None or abs(found[0] - self.goal.latency) < found[1]:
            return None
        return found[0] <= self.goal.latency

    def is_told(self, program: Program) -> bool:
        """Whether the bound is told, or more calls would not tell it."""
        found = self._asked(program)
        return self.holds(program) is not None or (found is not None and found[1] <= SURE * found[0])

    def _asked(self, program: Program) -> tuple[float, float] | None:
        return self._of_float(program) if self.goal.in_parts else self.of(program)

    def fastest(self, programs: Iterable[Program]) -> set[Program]:
        """Those of which no other is told to be faster; all where nothing is known."""
        times = {program: found for program in programs if (found := self.of(program)) is not None}
        most = min((least + margin for least, margin in times.values()), default=0.0)
        return {program for program, (least, margin) in times.items() if least - margin <= most} or set(programs)


def _apart(values: Sequence[float]) -> float:
    """How far they are apart; of a single one nothing is known."""
    return max(values) - min(values) if len(values) > 1 else values[0]


@dataclass(frozen=True)
class Timer:
    """The float model that programs are timed beside, on one batch, and the times that were found."""

    model: nn.Module
    item: Item
    clock: Clock
    times: Times

    def time(self, modules: Mapping[Program, nn.Module]) -> None:
        """Calls all of them in turn with the float model, where one of them has no time yet: so all have one of the same moment."""
        if all(self.times.of(program) is not None for program in modules):
            return
        calls = {program: self._call(module) for program, module in {FLOAT: self.model, **modules}.items()}
        self.times.moments.append(together().of_first(in_turn(calls, self.clock, self._is_told)))

    def _call(self, module: nn.Module) -> Callable[[], object]:
        return lambda: module(*self.item.args, **self.item.kwargs)

    def _is_told(self, moment: Moment) -> bool:
        """Whether the bound is told of all programs by this moment."""
        now = Times(self.times.goal, [moment])
        return all(now.is_told(program) for program in moment if program != FLOAT)


Calls: TypeAlias = Mapping[Program, Callable[[], object]]
Told: TypeAlias = Callable[[Moment], bool]


def in_turn(calls: Calls, clock: Clock, is_told: Told) -> Moment:
    """The least milliseconds of each quarter of the calls; of one call each at least, however little time is left. An interrupt ends the
    rounds alone. `is_told`: whether that is enough; else there are more rounds."""
    times: dict[Program, list[float]] = {key: [] for key in calls}
    with torch.inference_mode():
        try:
            _rounds(calls, times, clock, is_told)
        except KeyboardInterrupt:
            for key in [key for key, values in times.items() if not values]:
                times[key].append(_milliseconds(calls[key]))
    return _leasts(times)


def _rounds(calls: Calls, times: Mapping[Program, list[float]], clock: Clock, is_told: Told) -> None:
    begun, count = clock.spent, -WARM
    while not _is_enough(count, clock, begun, lambda: is_told(_leasts(times))):
        count += IN_A_ROW
        clock.show(f"timing {count + WARM}")
        for key, call in calls.items():
            times[key].extend(_milliseconds(call) for _ in range(IN_A_ROW))


def _is_enough(count: int, clock: Clock, begun: float, is_told: Callable[[], bool]) -> bool:
    """`count`: of the calls of each behind those that warm up."""
    if clock.spent > clock.seconds:
        return count + WARM >= 2
    share = (clock.spent - begun) / (SHARE * clock.seconds)
    used = max(count / ROUNDS, share if count >= FEW else 0.0)
    return used >= LONGER or (used >= 1 and is_told())


def _leasts(times: Mapping[Program, list[float]]) -> Moment:
    """Of each quarter of the calls behind those that warm up; of each call, those as well, where there are few."""
    count = min(map(len, times.values()))  # an interrupt may have come before some were called as often as others
    first = WARM if count > WARM + 1 else 0
    parts = min(PARTS, count - first)
    ends = [first + (count - first) * part // parts for part in range(parts + 1)]
    return {key: tuple(min(values[a:b]) for a, b in itertools.pairwise(ends)) for key, values in times.items()}


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3
