"""The times that a bound on latency hangs on: of programs, each called in turn with the float model, with a margin that is measured.

Stages whose modules run the same ops are one program, which has one time: they differ in numbers alone. Of a quarter of the calls the
least time counts, since what else the machine does only adds to it. How far the quarters are apart is the margin, and how much faster what
was called at that moment was at another one, and a twentieth. Beside other processes a call may take twice its time for as long as they
work. What lies nearer to the bound than that is too near to tell.
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
from qcompiler.timing import Machine
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
MOMENTS = 5  # at most, where the bound is too near to tell
SURE = 0.05  # share of a time by which another moment may differ, however alike the quarters of this one are
WATCHED = 0.5  # seconds that a moment lasts at least for what other processes do to be known: the system counts hundredths
BUSY = 0.125  # share of all cores that they keep at work from which on they count
SHARED = 2.0  # times as long a call may take then: two threads run on one core, and caches are shared

Program: TypeAlias = str
Leasts: TypeAlias = tuple[float, ...]  # milliseconds: the least of each part of the calls
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


@dataclass(frozen=True)
class Moment:
    """What was called in turn, the float model among it. `others`: share of all cores that other processes kept at work meanwhile."""

    leasts: Mapping[Program, Leasts]
    others: float = 0.0

    @property
    def is_busy(self) -> bool:
        return self.others >= BUSY


@dataclass
class Times:
    """The moments at which programs were timed."""

    goal: Goal
    moments: list[Moment] = field(default_factory=list)

    def of(self, program: Program) -> tuple[float, float] | None:
        """(milliseconds, margin); None for what was not timed."""
        moment = self._moment(program)
        if moment is None:
            return None
        slower = max(min(leasts) / self._least(one) for one, leasts in moment.leasts.items())
        least = min(moment.leasts[program])
        return least, max(_apart(moment.leasts[program]), least * (1 - 1 / slower), SURE * least)

    def _of_float(self, program: Program) -> tuple[float, float] | None:
        """(share of the float model's time, margin): what slows the machine slows both."""
        moment = self._moment(program)
        if moment is None:
            return None
        shares = [one / other for one, other in zip(moment.leasts[program], moment.leasts[FLOAT], strict=True)]
        share = min(moment.leasts[program]) / min(moment.leasts[FLOAT])
        return share, max(_apart(shares), SURE * share)

    def _moment(self, program: Program) -> Moment | None:
        """The moment to go by: with the fastest slowest quarter, of those without other processes if there is one."""
        known = [moment for moment in self.moments if program in moment.leasts]
        return min(known, key=lambda moment: (moment.is_busy, max(moment.leasts[program])), default=None)

    def _least(self, program: Program) -> float:
        return min(min(moment.leasts[program]) for moment in self.moments if program in moment.leasts)

    def holds(self, program: Program) -> bool | None:
        """Whether the bound holds; None where that is too near to tell, or nothing is known."""
        moment, found = self._moment(program), self._asked(program)
        if self.goal.latency is None:
            return True
        if moment is None or found is None:
            return None
        slower = SHARED if moment.is_busy else 1.0
        low, high = (found[0] - found[1]) / slower, (found[0] + found[1]) * (slower if self.goal.in_parts else 1.0)
        return None if low <= self.goal.latency < high else high <= self.goal.latency

    def is_told(self, program: Program) -> bool:
        """Whether the bound is told, or another moment would not tell it."""
        moment, found = self._moment(program), self._asked(program)
        is_sure = moment is not None and found is not None and not moment.is_busy and found[1] <= SURE * found[0]
        return is_sure or self.holds(program) is not None

    def _asked(self, program: Program) -> tuple[float, float] | None:
        """What the bound is of, with its margin."""
        return self._of_float(program) if self.goal.in_parts else self.of(program)

    def note(self) -> str:
        """What other processes did meanwhile, where that counts."""
        found = [self._moment(program) for moment in self.moments for program in moment.leasts]
        others = max((moment.others for moment in found if moment is not None), default=0.0)
        text = f"other processes kept {others:.0%} of all cores at work while modules were timed: beside none they may take half as long"
        return text if others >= BUSY else ""

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
        """Calls all of them in turn with the float model, where one of them has no time yet: so all have one of the same moment. There are
        more moments where the bound is too near to tell."""
        if all(self.times.of(program) is not None for program in modules):
            return
        calls = {program: self._call(module) for program, module in {FLOAT: self.model, **modules}.items()}
        for _ in range(MOMENTS):
            self.times.moments.append(together().of_first(in_turn(calls, self.clock, WATCHED if self.times.goal.latency else 0.0)))
            if all(map(self.times.is_told, modules)) or together().most(self.clock.spent) > self.clock.seconds:
                break

    def _call(self, module: nn.Module) -> Callable[[], object]:
        return lambda: module(*self.item.args, **self.item.kwargs)


def in_turn(calls: Mapping[Program, Callable[[], object]], clock: Clock, seconds: float = 0.0) -> Moment:
    """The least milliseconds of each quarter of the calls; of one call each at least, however little time is left. An interrupt ends the
    rounds alone. `seconds`: that it lasts at least."""
    times: dict[Program, list[float]] = {key: [] for key in calls}
    machine = Machine()
    with torch.inference_mode():
        try:
            _rounds(calls, times, clock, seconds)
        except KeyboardInterrupt:
            for key in [key for key, values in times.items() if not values]:
                times[key].append(_milliseconds(calls[key]))
    return Moment(_leasts(times), machine.share(WATCHED))


def _rounds(calls: Mapping[Program, Callable[[], object]], times: Mapping[Program, list[float]], clock: Clock, seconds: float) -> None:
    begun, count = clock.spent, -WARM
    while not _is_enough(count, clock, begun, seconds):
        count += IN_A_ROW
        clock.show(f"timing {count + WARM}")
        for key, call in calls.items():
            times[key].extend(_milliseconds(call) for _ in range(IN_A_ROW))


def _is_enough(count: int, clock: Clock, begun: float, seconds: float) -> bool:
    """`count`: of the calls of each behind those that warm up."""
    if clock.spent > clock.seconds:
        return count + WARM >= 2
    used = clock.spent - begun
    return count >= FEW and used >= seconds and (count >= ROUNDS or used > SHARE * clock.seconds)


def _leasts(times: Mapping[Program, list[float]]) -> dict[Program, Leasts]:
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
