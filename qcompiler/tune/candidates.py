"""The stages of a search that are worth choosing from: built and judged one after another, and their programs timed.

A built module has the weights twice, as tensors and packed, so no more of them are kept than can still be the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from qcompiler.executable import Executable
from qcompiler.tune.goal import Goal
from qcompiler.tune.let_go import graphs_of, let_go
from qcompiler.tune.score import Judge, Score
from qcompiler.tune.search_log import Step
from qcompiler.tune.times import Program, Times, program_of
from qcompiler.tune.together import together
from qcompiler.workflow.convert import Conversion, convert
from qcompiler.workflow.explain import explain


@dataclass(frozen=True)
class Candidate:
    """A stage that was built: `score` on held-out data is the module's own, in real int8. `program`: by which its time is known, the same
    on all ranks. `module`: None once it is let go."""

    step: Step
    module: Executable | None
    score: Score
    int8_share: float
    size: int
    program: Program = ""

    def without_module(self, prepared: nn.Module) -> Candidate:
        """Its tensors are let go at once: the graph that stays with a module has them, too, and refers to itself."""
        graphs, made = graphs_of(self.module), replace(self, module=None)
        if graphs:
            let_go(prepared, *graphs)
        return made


def module_of(prepared: nn.Module, step: Step) -> Executable:
    """The module of a stage."""
    return convert(prepared, (), Conversion(), step.corrections)


def built(prepared: nn.Module, step: Step, judge: Judge) -> Candidate:
    """A stage's module, judged."""
    module = module_of(prepared, step)
    size = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    program = together().of_first(program_of(module))
    return Candidate(step, module, judge.score(module), explain(module).int8_mac_share, size, program)


def worth_building(stages: Sequence[Step]) -> list[Step]:
    """The last stage of each set of ops: those before it have the same ops and are less accurate. The default is built already."""
    last = {(c.keep_float, c.dynamic, frozenset(c.columns)): stage for stage in stages for c in [stage.corrections]}
    return [stage for stage in last.values() if stage is not stages[0]]


def without_losers(found: Sequence[Candidate], times: Times, prepared: nn.Module) -> list[Candidate]:
    """The candidates with the module of the best one alone."""
    best, _ = chosen(found, times)
    return [one if one is best else one.without_module(prepared) for one in found]


def chosen(found: Sequence[Candidate], times: Times) -> tuple[Candidate, str]:
    """The candidate to give, and why: of those fast enough the fastest that reaches the target, else the most accurate one. What is too
    near to the bound to tell, or was not timed, is given where none is surely fast enough, and then the fastest.

    Of equal metrics dB decide; ties go to the simpler one, which stands first, and so do times that cannot be told apart. By what the goal
    counts in, none is below the default, unless that is too slow or both reach the target.
    """
    goal = times.goal
    fast = [one for one in found if times.holds(one.program)]
    if not fast:
        near = [one for one in found if times.holds(one.program) is None]
        why = "whether it is as fast as asked cannot be told" if near else "none is as fast as asked; this is the fastest"
        return _most_accurate(_fastest(near or found, times), goal), why
    good = [one for one in fast if goal.reached(one.score)]
    if good:
        return (good if goal.latency is None else _fastest(good, times))[0], "it reaches the target"
    why = "the target is not reached; this is the nearest" if goal.target is not None else "the most accurate one"
    return _most_accurate(fast, goal), why


def _fastest(found: Sequence[Candidate], times: Times) -> list[Candidate]:
    fastest = times.fastest([one.program for one in found])
    return [one for one in found if one.program in fastest]


def _most_accurate(found: Sequence[Candidate], goal: Goal) -> Candidate:
    """Of equal ones the first."""
    return max(found, key=lambda one: (goal.value(one.score), one.score.sqnr))
