"""autotune: the most accurate int8 module of a model that fits the time and the goal that the user gives."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from qcompiler.choices import Choices
from qcompiler.config.corrections import NO_CORRECTIONS
from qcompiler.executable import Executable
from qcompiler.tune.candidates import Beside, Candidate, built, chosen, module_of, with_times, without_losers, worth_building
from qcompiler.tune.clock import Clock, clock_for
from qcompiler.tune.diagnose import diagnose
from qcompiler.tune.goal import Goal
from qcompiler.tune.held_out import Item, read, split
from qcompiler.tune.moves import MOVES, State
from qcompiler.tune.result import Tuned
from qcompiler.tune.score import LEAST_GAIN, Judge, Metric, Score
from qcompiler.tune.search import Search
from qcompiler.tune.search_key import joined_keys, search_key
from qcompiler.tune.search_log import SearchLog, Step
from qcompiler.tune.shares import Shares
from qcompiler.tune.table import Row
from qcompiler.tune.together import sharing, together
from qcompiler.workflow.calibrate import calibrate
from qcompiler.workflow.prepare import prepare

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

DEFAULT = "default"


@dataclass(frozen=True)
class Task:
    """What to search for, and how. `seconds` counts from the call on."""

    goal: Goal
    metric: Metric | None
    seconds: float
    holdout: float
    seed: int
    log: str | Path | None
    progress: bool
    group: ProcessGroup | None = None
    timeout: float = 1800.0


def search(model: nn.Module, data: object, task: Task, choices: Choices, forms: object) -> Tuned:
    """The result of a task on a float model in eval mode."""
    with sharing(task.group, task.timeout), clock_for(task.seconds, task.progress and together().is_first) as clock:
        items = read(data, task.metric is not None)
        tuning, held = split(items, task.holdout, task.seed)
        clock.show("preparing")
        args, kwargs = together().of_first((tuning[0].args, dict(tuning[0].kwargs)))
        prepared = prepare(model, (args, forms or kwargs or None), choices, (), None)
        key = joined_keys(together().all(search_key(model, prepared, items, task.metric, (task.holdout, task.seed))))
        log = SearchLog(task.log if together().is_first else None, key)
        calibrate(prepared, _shown(tuning, clock), group=task.group, timeout=task.timeout)
        floats = copy.deepcopy(model)  # what a model keeps between calls stays as it is in the user's
        judge = Judge.of(floats, held, task.metric, Shares.of(prepared))
        beside = Beside(copy.deepcopy(model, _unchanged(model, floats)), held[0], clock)
        del floats
        made, found = _begun(State(prepared, tuning, task.seed, NO_CORRECTIONS), judge, task.goal, beside, log)
        if not found.interrupted:
            found.run(MOVES)
        return replace(_result(found, _built(found, made, beside)), batch=held[0].rows)


def _unchanged(model: nn.Module, called: nn.Module) -> dict[int, object]:
    """The memo for `deepcopy` of what copies of the model may have in common with it: parameters that calls of one left as they were."""
    pairs = zip(model.parameters(), called.parameters(), strict=True)
    return {id(one): one for one, other in pairs if one.is_cpu and torch.equal(one, other)}


def _shown(items: Sequence[Item], clock: Clock) -> Iterator[object]:
    for index, item in enumerate(items, 1):
        clock.show(f"calibrating {index}/{len(items)}")
        yield item.call


def _begun(state: State, judge: Judge, goal: Goal, beside: Beside, log: SearchLog) -> tuple[Candidate, Search]:
    """The default, judged and timed, and the search that begins there. How long building took tells how long it takes in the end.

    Its module is let go: most searches end with another one.
    """
    clock, begun = beside.clock, beside.clock.spent
    clock.show("building the default")
    made = built(state.prepared, Step(DEFAULT, None, 0.0, True, ""), judge)
    clock.reserve = together().most(1.5 * (clock.spent - begun))
    made = beside.timed(made).without_module(state.prepared)
    found = Search(replace(state, score=made.score), judge, goal, clock, log, made.score)
    try:
        _judge_default(found, made.score)
    except KeyboardInterrupt:
        if not together().is_alone:
            raise
        found.interrupted = True
    step = Step(DEFAULT, found.best, found.seconds_of_score, True, "")
    found.steps, found.stages = [step], [step]
    return replace(made, step=step), found


def _judge_default(found: Search, in_int8: Score) -> None:
    """On the reference graph, as the steps are, and what limits it where there is time for that and for a step."""
    begun = found.clock.spent
    found.best = found.score(NO_CORRECTIONS, DEFAULT)
    found.seconds_of_score = together().most(found.clock.spent - begun)
    found.state = replace(found.state, score=found.best)
    if found.clock.left > 3 * found.seconds_of_score and not found.goal.reached(in_int8):
        found.clock.show("what limits it")
        found.state = replace(found.state, diagnosis=diagnose(found.state.prepared, found.judge, found.best))


def _built(found: Search, default: Candidate, beside: Beside) -> list[Candidate]:
    """The default and what was found, built and timed; an interrupt leaves out what is not yet. One module at most is kept."""
    made = [default]
    try:
        for stage in reversed(worth_building(found.stages)):
            beside.clock.show(f"building {stage.name}")
            made.insert(1, beside.timed(built(found.state.prepared, stage, found.judge)))
            made = without_losers(made, found.goal, found.state.prepared)
    except KeyboardInterrupt:
        if not together().is_alone:
            raise
        found.interrupted = True
    return made


def _again(found: Search, best: Candidate) -> Executable:
    """The module of the default, which was let go. An interrupt meanwhile gives it all the same; a second one ends."""
    try:
        return module_of(found.state.prepared, best.step)
    except KeyboardInterrupt:
        if not together().is_alone:
            raise
        found.interrupted = True
        return module_of(found.state.prepared, best.step)


def _result(found: Search, candidates: Sequence[Candidate]) -> Tuned:
    timed, of_float = with_times(candidates)
    best, why = chosen(timed, of_float, found.goal)
    module = best.module or _again(found, best)
    reached = (found.goal.target is None or found.goal.reached(best.score)) and found.goal.fast_enough(best.milliseconds, of_float)
    by_name = {one.step.name: one for one in timed}
    table = [Row("float", found.judge.of_float() if found.judge.metric else None, of_float, 0.0, None, 0.0, "")]
    table += [_row(step, by_name.get(step.name), best) for step in found.steps]
    corrections = best.step.corrections
    kept = tuple(sorted(corrections.keep_float))
    diagnosis = "" if found.state.diagnosis is None else str(found.state.diagnosis)
    return Tuned(module, tuple(table), tuple(found.steps), corrections, found.state.prepared, kept, diagnosis, why, reached,
                 found.interrupted, found.clock.spent, in_front=found.judge.shares.text())  # fmt: skip


def _apart(judged: Score | None, own: Score) -> str:
    """A word where the module itself is not as its reference graph, which the steps are judged on."""
    if judged is None or abs(judged.sqnr - own.sqnr) < LEAST_GAIN:
        return ""
    return f"; {judged.sqnr:.1f} dB on the reference graph, where steps are judged"


def _row(step: Step, made: Candidate | None, best: Candidate) -> Row:
    if made is None:
        return Row(step.name, step.score, None, None, None, step.seconds, step.why)
    why = (step.why or "what quantize gives") + _apart(step.score, made.score)
    return Row(step.name, made.score, made.milliseconds, made.int8_share, made.size, step.seconds, why, made is best)
