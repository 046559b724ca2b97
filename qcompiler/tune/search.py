"""The steps of a search, one after another: each is made, judged on held-out data, and taken or left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from torch import fx

from qcompiler.config.corrections import NO_CORRECTIONS, Corrections
from qcompiler.errors import ConfigError
from qcompiler.tune.clock import Clock, OutOfTime
from qcompiler.tune.diagnose import values_alone
from qcompiler.tune.goal import Goal
from qcompiler.tune.let_go import let_go, twins_for_now
from qcompiler.tune.moves import Move, State
from qcompiler.tune.score import Judge, Score, refusal
from qcompiler.tune.search_log import SearchLog, Step
from qcompiler.tune.together import together
from qcompiler.workflow.convert import Conversion, reference

TAKEN = "taken"


@dataclass
class Search:
    """`state`: where it stands; `best`: the score there; `steps`: all that were looked at; `stages`: what was taken, the default first."""

    state: State
    judge: Judge
    goal: Goal
    clock: Clock
    log: SearchLog
    best: Score
    steps: list[Step] = field(default_factory=list)
    stages: list[Step] = field(default_factory=list)
    interrupted: bool = False
    seconds_of_score: float = 0.0  # of one score: what the cheapest step takes

    def run(self, moves: Iterable[Move]) -> None:
        """All moves, until the goal is reached, the time is over or the user interrupts."""
        try:
            for move in moves:
                if self.goal.reached(self.best):
                    return
                self._try(move)
        except KeyboardInterrupt:
            if not together().is_alone:  # the others wait for this one
                raise
            self.interrupted = True

    def _try(self, move: Move) -> None:
        why = move.skips(self.state)
        if why is not None:
            self._note(Step(move.name, None, 0.0, False, f"not tried: {why}"))
            return
        known = together().of_first(self.log.find(move.name, self.taken))
        if known is not None:
            self._note(known)
            return
        if self.clock.left < self.seconds_of_score:
            self._note(Step(move.name, None, 0.0, False, f"not tried: {OutOfTime(self.seconds_of_score, self.clock.left)}"))
            return
        begun = self.clock.spent
        step, taken = self._made(move), self.taken
        step = replace(step, seconds=self.clock.spent - begun)
        self._note(step)
        if step.score is not None:
            self.log.add(step, taken)

    @property
    def taken(self) -> list[str]:
        """The steps that the next one builds on."""
        return [stage.name for stage in self.stages]

    def _note(self, step: Step) -> None:
        self.steps.append(step)
        if step.score is not None:
            self.state = replace(self.state, judged=self.state.judged | {step.name})
        if step.accepted and step.score is not None:
            self.best = step.score
            taken = (*self.state.taken, step.name)
            self.state = replace(self.state, corrections=step.corrections, score=step.score, taken=taken)
            self.stages.append(step)

    def _made(self, move: Move) -> Step:
        try:
            found = together().of_first(self._corrections(move))
            if found == self.state.corrections:
                return Step(move.name, self.best, 0.0, False, "it changes nothing")
            score = self.score(found, move.name)
            why = self._refusal(move, found, score)
        except OutOfTime as error:
            return Step(move.name, None, 0.0, False, f"given up: {error}")
        except ConfigError as error:  # what another kernel cannot have; anything else is a fault
            together().refuse(error)
            return Step(move.name, None, 0.0, False, f"not possible: {error.message}")
        return Step(move.name, score, 0.0, why is None, why or TAKEN, str(found), found if why is None else NO_CORRECTIONS)

    def _refusal(self, move: Move, found: Corrections, score: Score) -> str | None:
        """Why the step is not taken; None where it is. What weights hide is judged without their noise, which new codes take away."""
        if not move.hidden(self.state):
            return refusal(self.best, score)
        before = self.state.corrections
        known = self.state.diagnosis.values if self.state.diagnosis is not None and before == NO_CORRECTIONS else None
        why = refusal(known or self._alone(before, move.name), self._alone(found, move.name))
        return why and f"with float weights {why}"

    def _alone(self, corrections: Corrections, name: str) -> Score:
        """With float weights."""
        with twins_for_now(self.state.prepared, corrections) as made:
            return self.judge.score(values_alone(made[0]), lambda: self.clock.show(f"{name}: judging"))

    def _corrections(self, move: Move) -> Corrections:
        """With all data, or where its pace tells that this would end too late, with as much as there is time for."""
        try:
            return move.make(self.state, self.clock.step(move.name, move.share), 1.0)
        except OutOfTime as error:
            effort = 0.7 * move.share * self.clock.left / error.needed
            if effort < move.least_effort:
                raise
            return move.make(self.state, self.clock.step(f"{move.name} on {effort:.0%} of the data", move.share), effort)

    def score(self, corrections: Corrections, name: str) -> Score:
        """On the reference graph: it is any back end's, and costs no lowering."""
        made = graph_of(self.state.prepared, corrections)
        found = self.judge.score(made, lambda: self.clock.show(f"{name}: judging"))
        let_go(self.state.prepared, made)
        return found


def graph_of(prepared: object, corrections: Corrections) -> fx.GraphModule:
    """What candidates are judged on, with the prepared module's own float weights."""
    return reference(prepared, (), Conversion(shares=True), corrections)
