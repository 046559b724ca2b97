"""The stages of a search that are worth choosing from: built, judged and timed beside the float model, one after another.

A built module has the weights twice, as tensors and packed, so no more of them are kept than can still be the result.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from qcompiler.executable import Executable
from qcompiler.tune.clock import Clock
from qcompiler.tune.goal import Goal
from qcompiler.tune.held_out import Item
from qcompiler.tune.let_go import let_go
from qcompiler.tune.score import Judge, Score
from qcompiler.tune.search_log import Step
from qcompiler.tune.together import together
from qcompiler.workflow.convert import Conversion, convert
from qcompiler.workflow.explain import explain

ROUNDS, WARM = 20, 2  # calls of each module that are timed, and before them
FEW, SHARE = 5, 0.02  # timed calls that are enough where more would take longer than this share of all the time


@dataclass(frozen=True)
class Candidate:
    """A stage that was built: `score` on held-out data is the module's own, in real int8. `milliseconds`: median of one held-out batch;
    `of_float`: of the float model, called in turn with it. `module`: None once it is let go."""

    step: Step
    module: Executable | None
    score: Score
    int8_share: float
    size: int
    milliseconds: float = 0.0
    of_float: float = 0.0

    def without_module(self, prepared: nn.Module) -> Candidate:
        """Its tensors are let go at once: the graph that stays with a module has them, too, and refers to itself."""
        graph = None if self.module is None else self.module._graph()
        made = replace(self, module=None)
        if graph is not None:
            let_go(prepared, graph)
        return made

    def beside(self, of_float: float) -> Candidate:
        """With the time that it takes where the float model takes so many milliseconds: moments are slower than others."""
        return replace(self, milliseconds=self.milliseconds * of_float / self.of_float, of_float=of_float)


def module_of(prepared: nn.Module, step: Step) -> Executable:
    """The module of a stage."""
    return convert(prepared, (), Conversion(), step.corrections)


def built(prepared: nn.Module, step: Step, judge: Judge) -> Candidate:
    """A stage's module, judged."""
    module = module_of(prepared, step)
    size = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    return Candidate(step, module, judge.score(module), explain(module).int8_mac_share, size)


def worth_building(stages: Sequence[Step]) -> list[Step]:
    """The last stage of each set of ops: those before it have the same ops and are less accurate. The default is built already."""
    last = {(c.keep_float, c.dynamic, frozenset(c.columns)): stage for stage in stages for c in [stage.corrections]}
    return [stage for stage in last.values() if stage is not stages[0]]


@dataclass(frozen=True)
class Beside:
    """The float model that candidates are timed beside, on one batch."""

    model: nn.Module
    item: Item
    clock: Clock

    def timed(self, one: Candidate) -> Candidate:
        """The candidate with its time, and the float model's: both called in turn, so that a slower moment meets both."""
        module, (args, kwargs) = one.module, (self.item.args, self.item.kwargs)
        assert module is not None
        times = together().of_first(_interleaved({0: lambda: module(*args, **kwargs), 1: lambda: self.model(*args, **kwargs)}, self.clock))
        return replace(one, milliseconds=times[0], of_float=times[1])


def _interleaved(calls: Mapping[int, Callable[[], object]], clock: Clock) -> dict[int, float]:
    """Median milliseconds of each call; one each at least, however little time is left. An interrupt ends the rounds alone."""
    times: dict[int, list[float]] = {key: [] for key in calls}
    with torch.inference_mode():
        try:
            _rounds(calls, times, clock)
        except KeyboardInterrupt:
            for key in [key for key, values in times.items() if not values]:
                times[key].append(_milliseconds(calls[key]))
    return {key: statistics.median(values[min(WARM, len(values) - 1) :]) for key, values in times.items()}


def _rounds(calls: Mapping[int, Callable[[], object]], times: Mapping[int, list[float]], clock: Clock) -> None:
    begun = clock.spent
    for turn in range(WARM + ROUNDS):
        clock.show(f"timing {turn + 1}/{WARM + ROUNDS}")
        for key, call in calls.items():
            times[key].append(_milliseconds(call))
        late, long = clock.spent > clock.seconds, clock.spent - begun > SHARE * clock.seconds
        if (late and turn >= 1) or (long and turn >= WARM + FEW - 1):
            break


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def with_times(found: Sequence[Candidate]) -> tuple[list[Candidate], float]:
    """The candidates as if all had been timed at one moment, and the float model's time then."""
    of_float = statistics.median(one.of_float for one in found)
    return [one.beside(of_float) for one in found], of_float


def without_losers(found: Sequence[Candidate], goal: Goal, prepared: nn.Module) -> list[Candidate]:
    """The candidates with the module of the best one alone."""
    timed, of_float = with_times(found)
    best, _ = chosen(timed, of_float, goal)
    return [one if other is best else one.without_module(prepared) for one, other in zip(found, timed, strict=True)]


def chosen(found: Sequence[Candidate], of_float: float, goal: Goal) -> tuple[Candidate, str]:
    """The candidate to give, and why: of those fast enough the fastest that reaches the target, else the most accurate one.

    Of equal metrics dB decide; ties go to the simpler one, which stands first. By what the goal counts in, none is below the default,
    unless that is too slow or both reach the target.
    """
    fast = [one for one in found if goal.fast_enough(one.milliseconds, of_float)]
    if not fast:
        return min(found, key=lambda one: one.milliseconds), "none is as fast as asked; this is the fastest"
    good = [one for one in fast if goal.reached(one.score)]
    if good:
        return min(good, key=lambda one: one.milliseconds if goal.latency is not None else found.index(one)), "it reaches the target"
    best = max(fast, key=lambda one: (goal.value(one.score), one.score.sqnr, -found.index(one)))
    return best, "the target is not reached; this is the nearest" if goal.target is not None else "the most accurate one"
