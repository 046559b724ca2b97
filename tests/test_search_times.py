"""What a bound on latency hangs on: equal programs have equal times, margins are measured, and what is too near to tell is told.

Time is scripted: each call moves a clock of the test's own on, by what the machine makes of it at that moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.timing import machine
from qcompiler.tune import autotune as room
from qcompiler.tune import times as module
from qcompiler.tune.candidates import Candidate, chosen
from qcompiler.tune.clock import Clock
from qcompiler.tune.goal import Goal
from qcompiler.tune.held_out import Item
from qcompiler.tune.moves import MOVES
from qcompiler.tune.score import Score
from qcompiler.tune.search_log import Step
from qcompiler.tune.times import FLOAT, MOMENTS, ROUNDS, SURE, WARM, Moment, Timer, Times, in_turn, program_of
from tests.test_autotune import Net, better, data, moves, tuned


class Machine:
    """`now`: seconds. `slow(now)`: how many times as long a call takes that begins then."""

    def __init__(self, slow: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now, self.slow, self.calls, self.others = 0.0, slow, 0, [0.0]

    def share(self, seconds: float) -> float:
        """What other processes do: at this moment the next of what is said."""
        return self.others.pop(0) if len(self.others) > 1 else self.others[0]

    def call(self, milliseconds: float) -> Callable[..., None]:
        def run(*args: object) -> None:
            self.calls += 1
            self.now += self.slow(self.now) * milliseconds / 1e3

        return run


class Called(nn.Module):
    def __init__(self, run: Callable[..., None]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *args: object) -> None:
        self.run(*args)


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Timer, Machine]]:
    def make(goal: Goal, slow: Callable[[float], float] = lambda now: 1.0, of_float: float = 20.0) -> tuple[Timer, Machine]:
        machine, clock = Machine(slow), Clock(1000.0)
        monkeypatch.setattr(module, "WATCHED", 0.0)
        monkeypatch.setattr(module, "Machine", lambda: machine)
        monkeypatch.setattr(module.time, "perf_counter", lambda: machine.now)
        monkeypatch.setattr("qcompiler.tune.clock.time.monotonic", lambda: clock.started + machine.now)
        return Timer(Called(machine.call(of_float)), Item((), {}, None), clock, Times(goal)), machine

    return make


def timed(found: tuple[Timer, Machine], **milliseconds: float) -> Times:
    """All of them in turn."""
    found[0].time({name: Called(found[1].call(one)) for name, one in milliseconds.items()})
    return found[0].times


def quiet(milliseconds: float) -> tuple[Any, Any]:
    """The time and its margin where all quarters are alike."""
    return pytest.approx(milliseconds), pytest.approx(SURE * milliseconds)


def in_bursts(now: float) -> float:
    """Of a second 0.3 are slow: other processes come and go."""
    return 1.5 if now % 1 < 0.3 else 1.0


def test_a_quiet_machine_has_the_least_margin(timer: Any) -> None:
    found = timer(Goal.of(None, 10, False))
    times = timed(found, a=9.4, b=10.2, c=10.7)
    assert times.of("a") == quiet(9.4) and times.of(FLOAT) == quiet(20.0) and times.of("d") is None
    assert [times.holds(name) for name in "abcd"] == [True, None, False, None]
    assert found[1].calls // 4 == ROUNDS + WARM  # more of them would not tell b


def test_what_slows_some_calls_changes_no_time(timer: Any) -> None:
    times = timed(timer(Goal.of(None, 12, False), in_bursts), a=10.0)
    assert times.of("a") == quiet(10.0) and times.holds("a") is True


def test_what_another_module_leaves_behind_is_not_counted(timer: Any) -> None:
    """Its values in caches, threads that still wait for work: the first call behind it is slower."""
    found = timer(Goal.of(None, 12, False))
    last: list[str] = []

    def run(name: str, milliseconds: float) -> None:
        found[1].call(milliseconds * (1.0 if last == [name] else 1.5))()
        last[:] = [name]

    found[0].time({name: Called(lambda name=name: run(name, 10.0)) for name in ("a", "b")})  # type: ignore[misc]
    assert found[0].times.of("a")[0] == found[0].times.of("b")[0] == pytest.approx(10.0) and found[0].times.holds("a")


@pytest.mark.parametrize(("bound", "held"), [(9, False), (12, None), (16, True), (4, False), ("0.45x", False), ("0.55x", True)])
def test_a_machine_that_becomes_slow_has_a_margin(timer: Any, bound: Any, held: bool | None) -> None:
    """Half of the calls take half as long again: 10 ± 5 ms. Float is as slow then, so parts of its time are told."""
    slow = lambda now: 1.5 if now > 0.33 else 1.0  # noqa: E731
    assert timed(timer(Goal(), slow), a=10.0).of("a") == (pytest.approx(10.0), pytest.approx(5.0))
    assert timed(timer(Goal.of(None, bound, False), slow), a=10.0).holds("a") is held


def test_what_is_too_near_is_timed_again(timer: Any) -> None:
    """A machine that becomes quiet: another moment tells."""
    for bound, moments in ((12.0, 2), (30.0, 1)):
        found = timer(Goal.of(None, bound, False), lambda now: 1.5 if now < 0.4 else 1.0)
        assert timed(found, a=10.0).holds("a") is True and len(found[0].times.moments) == moments


def test_what_stays_too_near_ends(timer: Any) -> None:
    found = timer(Goal.of(None, 10.2, False), lambda now: 1.0 if now < 0.5 else 1.1)
    assert timed(found, a=10.0).holds("a") is None and found[1].calls // 2 == MOMENTS * (ROUNDS + WARM)


@pytest.mark.parametrize(
    ("bound", "held"), [(25, True), (17, None), (11, None), (9, False), ("1.7x", True), ("0.8x", None), ("0.2x", False)]
)
def test_beside_other_processes_a_call_may_take_twice_its_time(timer: Any, bound: Any, held: bool | None) -> None:
    """All calls take 20 ms instead of 10, for as long as anybody looks; float as well, or not."""
    found = timer(Goal.of(None, bound, False), lambda now: 2.0)
    found[1].others = [0.5]
    times = timed(found, a=10.0)
    assert times.of("a") == quiet(20.0) and times.holds("a") is held and "kept 50% of all cores" in times.note()
    assert len(times.moments) == (MOMENTS if held is None else 1)


def test_a_quiet_moment_is_waited_for(timer: Any) -> None:
    found = timer(Goal.of(None, 12, False), lambda now: 2.0 if now < 2.0 else 1.0)
    found[1].others = [0.5, 0.5, 0.0]
    times = timed(found, a=10.0)
    assert times.of("a") == quiet(10.0) and times.holds("a") is True and len(times.moments) == 3 and not times.note()


def test_another_moment_tells_how_slow_this_one_was(timer: Any) -> None:
    """All quarters of a moment are equally slow: none of them shows it, but float does, and what was timed before."""
    found = timer(Goal.of(None, 12, False), lambda now: 1.5 if now < 10 else 1.0)
    times = timed(found, a=10.0)
    assert times.of("a") == quiet(15.0) and times.holds("a") is False
    found[1].now = 10.0
    timed(found, b=11.0)
    assert times.of("b") == quiet(11.0) and times.holds("b") is True
    assert times.of("a") == (pytest.approx(15.0), pytest.approx(5.0)) and times.holds("a") is None
    timed(found, a=10.0, c=1.0)  # beside another: anew
    assert times.of("a") == quiet(10.0) and times.holds("a") is True


def test_what_has_a_time_is_not_timed_again(timer: Any) -> None:
    found = timer(Goal())
    timed(found, a=10.0)
    calls = found[1].calls
    timed(found, a=10.0)
    assert found[1].calls == calls


def test_one_call_tells_nothing() -> None:
    times = Times(Goal.of(None, 12, False), [Moment({FLOAT: (20.0,), "a": (10.0,)})])
    assert times.of("a") == (10.0, 10.0) and times.holds("a") is None
    assert Times(Goal.of(None, "0.6x", False), times.moments).holds("a") is None


def test_an_interrupt_while_programs_are_timed_keeps_them() -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt

    assert set(in_turn({"a": call, "b": lambda: None}, Clock(10.0)).leasts) == {"a", "b"}


@pytest.mark.parametrize(("seconds", "count"), [(0.01, ROUNDS + WARM), (1.0, 8 + WARM), (60.0, 2)])
def test_calls_that_take_long_are_timed_few_times(seconds: float, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, clock = Machine(), Clock(100.0)
    monkeypatch.setattr("qcompiler.tune.clock.time.monotonic", lambda: clock.started + machine.now)
    in_turn({"a": machine.call(1e3 * seconds)}, clock)
    assert machine.calls == count


def candidate(name: str, sqnr: float) -> Candidate:
    return Candidate(Step(name, None, 0, True, ""), None, Score(sqnr, 0.0), 1.0, 0, name)


FOUND = [candidate("default", 20), candidate("codes", 25), candidate("islands", 27)]


def moment(**own: float) -> Moment:
    return Moment({FLOAT: (10.0,) * 4} | {name: (one,) * 4 for name, one in own.items()})


NEAR: list[tuple[Mapping[str, float], float | None, str, str]] = [
    ({"default": 0.1, "codes": 0.1, "islands": 0.1}, None, "codes", "the most accurate one"),  # 8 ms is beyond 6
    ({"default": 0.1, "codes": 1.5, "islands": 0.1}, None, "default", "the most accurate one"),  # what is surely within goes first
    ({"default": 3.0, "codes": 1.5, "islands": 0.1}, None, "codes", "cannot be told"),  # of these two none is told to be the faster
    ({"default": 3.0, "codes": 1.5, "islands": 3.0}, None, "islands", "cannot be told"),
    ({"default": 0.1, "codes": 0.2, "islands": 0.1}, 19.0, "default", "it reaches the target"),  # and none is told to be faster
    ({"default": 0.0, "codes": 0.0, "islands": 0.0}, 24.0, "codes", "it reaches the target"),
]


@pytest.mark.parametrize(("margins", "target", "name", "why"), NEAR)
def test_choosing_where_times_are_near_to_the_bound(margins: Mapping[str, float], target: float | None, name: str, why: str) -> None:
    own = {"default": 5.0, "codes": 5.1, "islands": 8.0}
    found = {name: (own[name], *[own[name] + margin] * 3) for name, margin in margins.items()}
    best, text = chosen(FOUND, Times(Goal.of(target, 6, False), [Moment({FLOAT: (10.0,) * 4, **found})]))
    assert best.step.name == name and why in text


def test_of_equal_programs_that_are_too_slow_the_most_accurate_is_given() -> None:
    found = [replace(one, program="same") for one in FOUND[:2]]
    best, why = chosen(found, Times(Goal.of(None, 1, False), [moment(same=5.0)]))
    assert best.step.name == "codes" and "the fastest" in why


def test_what_was_not_timed_is_not_within_the_bound() -> None:
    times = Times(Goal.of(None, 6, False), [moment(codes=5.0)])
    assert chosen(FOUND, times)[0].step.name == "codes"
    assert chosen(FOUND, Times(Goal()))[0].step.name == "islands" and "cannot be told" in chosen(FOUND, Times(times.goal))[1]


def test_an_interrupt_before_a_program_is_timed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default is the result all the same; whether it is fast enough nobody knows."""

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Timer, "time", interrupted)
    moves(monkeypatch)
    found = tuned(latency="1000ms")
    assert found.interrupted and not found.reached and found.table[1].chosen and found.table[1].verdict.endswith("; not timed")
    assert tuned().reached


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A clock that luck moves on: each call takes up to half as long again."""
    generator, now = torch.Generator().manual_seed(0), [0.0]

    def tick() -> float:
        now[0] += 0.01 * (1 + 0.5 * torch.rand((), generator=generator).item())
        return now[0]

    monkeypatch.setattr(module, "WATCHED", 0.0)
    monkeypatch.setattr(module, "Machine", Machine)
    monkeypatch.setattr(module.time, "perf_counter", tick)
    yield


def test_equal_programs_have_equal_times(noisy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """New codes, biases and ranges are numbers alone, wherever the search ends."""
    monkeypatch.setattr("qcompiler.tune.search.refusal", lambda before, after: None)
    for name in ("reconstruct", "ranges"):
        monkeypatch.setattr(room, "MOVES", tuple(replace(move, skips=lambda state: None) for move in MOVES if move.name == name))
        default, step = (row for row in tuned().table if row.name != "float")
        assert step.verdict == "taken" and step.milliseconds == default.milliseconds and step.margin == default.margin


def test_a_bound_that_luck_would_settle_is_told(noisy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    moves(monkeypatch, ("better", better, 1.0))
    found = tuned(latency="10.1ms")
    assert not found.reached and "whether it is as fast as asked cannot be told" in found.verdict
    assert sum(row.verdict.endswith("; too near to the time that was asked to tell") for row in found.table) == 2
    assert all(row.margin and f"{row.milliseconds:.2f} ± {row.margin:.2f}" in str(found) for row in found.table)
    assert tuned(latency="30ms").reached and not tuned(latency="1ms").reached


def converted(backend: str, **changed: Any) -> nn.Module:
    prepared = qcompiler.prepare_fx(Net().eval(), None, (data()[0],), backend=backend)
    qcompiler.calibrate(prepared, data(2))
    return qcompiler.convert_fx(prepared, corrections=qcompiler.tune.Corrections(**changed))


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_a_program_is_told_by_its_ops(backend: str) -> None:
    default = program_of(converted(backend))
    assert program_of(converted(backend)) == default
    codes = converted(backend).state_dict()["stem.weight"] // 2
    for changed in ({"ranges": {"x": (-0.5, 0.5)}}, {"biases": {"stem": torch.ones(16), "head": torch.ones(10)}},
                    {"codes": {"stem.weight": codes.int_repr() if codes.is_quantized else codes}}):  # fmt: skip
        assert program_of(converted(backend, **changed)) == default, changed
    others = [{"keep_float": frozenset({"head"})}, {"keep_float": frozenset({"mean"})}, {"dynamic": frozenset({"head"})}]
    assert len({default, *(program_of(converted(backend, **changed)) for changed in others)}) == 1 + len(others)


def test_several_forms_of_a_call_are_one_program() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Linear(4, 4)

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            y: Tensor = self.first(x)
            return y if mask is None else y * mask

    x = torch.randn(4, 4)
    mask = torch.ones(4, 1)
    calls = [{"x": x}, {"x": x, "mask": mask}, {"x": x + 1}, {"x": x - 1}]
    found = qcompiler.autotune(Masked().eval(), calls, progress=False, target=1, example_kwargs=calls[:2])
    assert room.DEFAULT in [row.name for row in found.table if row.milliseconds]


def test_other_processes_are_told_of_where_they_were_watched_for_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds of which other processes worked six, on four cores; the process itself worked two."""
    now, worked, own = [100.0], [50.0], [3.0]
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(machine.time, "process_time", lambda: own[0])
    monkeypatch.setattr(machine, "_worked", lambda: worked[0])
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    watch = machine.Machine()
    now[0], worked[0], own[0] = 110.0, 58.0, 5.0
    assert watch.share(10.0) == pytest.approx(0.15) and watch.share(10.1) == 0.0
    monkeypatch.setattr(machine, "_worked", lambda: None)
    assert watch.share(10.0) == 0.0
