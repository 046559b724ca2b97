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
from qcompiler.tune.candidates import Candidate, built, chosen, module_of, without_losers, worth_building
from qcompiler.tune.classes import are_classes
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
from qcompiler.tune.times import FLOAT, Program, Timer, Times
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
        judge = Judge.of(floats, held, task.metric, Shares.of(prepared), are_classes(prepared))
        timer = Timer(copy.deepcopy(model, _unchanged(model, floats)), held[0], clock, Times(task.goal))
        del floats
        made, found = _begun(State(prepared, tuning, task.seed, NO_CORRECTIONS), judge, task.goal, clock, log)
        if not found.interrupted:
            found.run(MOVES)
        return replace(_result(found, _built(found, made, timer), timer.times), batch=held[0].rows)


def _unchanged(model: nn.Module, called: nn.Module) -> dict[int, object]:
    """The memo for `deepcopy` of what copies of the model may have in common with it: parameters that calls of one left as they were."""
    pairs = zip(model.parameters(), called.parameters(), strict=True)
    return {id(one): one for one, other in pairs if one.is_cpu and torch.equal(one, other)}


def _shown(items: Sequence[Item], clock: Clock) -> Iterator[object]:
    for index, item in enumerate(items, 1):
        clock.show(f"calibrating {index}/{len(items)}")
        yield item.call


def _begun(state: State, judge: Judge, goal: Goal, clock: Clock, log: SearchLog) -> tuple[Candidate, Search]:
    """The default, judged, and the search that begins there. How long building took tells how long it takes in the end.

    Its module is let go: most searches end with another one.
    """
    begun = clock.spent
    clock.show("building the default")
    made = built(state.prepared, Step(DEFAULT, None, 0.0, True, ""), judge)
    clock.reserve = together().most(1.5 * (clock.spent - begun))
    made = made.without_module(state.prepared)
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


def _built(found: Search, default: Candidate, timer: Timer) -> list[Candidate]:
    """The default and what was found, built, and their programs timed; an interrupt leaves out what is not yet. One module at most is kept.

    The default is built once more where no other stage runs its ops: it is timed with the best of them.
    """
    made, prepared = [default], found.state.prepared
    try:
        for stage in reversed(worth_building(found.stages)):
            timer.clock.show(f"building {stage.name}")
            made = _timed([default, built(prepared, stage, found.judge), *made[1:]], timer, prepared)
        if timer.times.of(default.program) is None:
            timer.clock.show(f"building {DEFAULT}")
            made = _timed([replace(default, module=module_of(prepared, default.step)), *made[1:]], timer, prepared)
    except KeyboardInterrupt:
        if not together().is_alone:
            raise
        found.interrupted = True
    return made


def _timed(made: list[Candidate], timer: Timer, prepared: nn.Module) -> list[Candidate]:
    """The candidates with their programs timed and the module of the best one alone."""
    timer.time({one.program: one.module for one in made if one.module is not None})
    return without_losers(made, timer.times, prepared)


def _again(found: Search, best: Candidate) -> Executable:
    """The module of a stage that was let go. An interrupt meanwhile gives it all the same; a second one ends."""
    try:
        return module_of(found.state.prepared, best.step)
    except KeyboardInterrupt:
        if not together().is_alone:
            raise
        found.interrupted = True
        return module_of(found.state.prepared, best.step)


def _result(found: Search, candidates: Sequence[Candidate], times: Times) -> Tuned:
    best, why = chosen(candidates, times)
    module = best.module or _again(found, best)
    reached = (found.goal.target is None or found.goal.reached(best.score)) and times.holds(best.program) is True
    by_name = {one.step.name: one for one in candidates}
    milliseconds, margin = times.of(FLOAT) or (None, None)
    table = [Row("float", found.judge.of_float() if found.judge.metric else None, milliseconds, 0.0, None, 0.0, "", margin=margin)]
    table += [_row(step, by_name.get(step.name), best, times) for step in found.steps]
    corrections = best.step.corrections
    kept = tuple(sorted(corrections.keep_float))
    diagnosis = "" if found.state.diagnosis is None else str(found.state.diagnosis)
    return Tuned(module, tuple(table), tuple(found.steps), corrections, found.state.prepared, kept, diagnosis, why, reached,
                 found.interrupted, found.clock.spent, in_front=found.judge.shares.text(), busy=times.note())  # fmt: skip


def _apart(judged: Score | None, own: Score) -> str:
    """A word where the module itself is not as its reference graph, which the steps are judged on."""
    if judged is None or abs(judged.sqnr - own.sqnr) < LEAST_GAIN:
        return ""
    return f"; {judged.sqnr:.1f} dB on the reference graph, where steps are judged"


def _speed(times: Times, program: Program) -> str:
    """A word where it is not surely as fast as asked."""
    if times.holds(program):
        return ""
    if times.of(program) is None:
        return "; not timed"
    return "; slower than asked" if times.holds(program) is False else "; too near to the time that was asked to tell"


def _row(step: Step, made: Candidate | None, best: Candidate, times: Times) -> Row:
    if made is None:
        return Row(step.name, step.score, None, None, None, step.seconds, step.why)
    why = (step.why or "what quantize gives") + _apart(step.score, made.score) + _speed(times, made.program)
    milliseconds, margin = times.of(made.program) or (None, None)
    return Row(step.name, made.score, milliseconds, made.int8_share, made.size, step.seconds, why, made is best, margin)
