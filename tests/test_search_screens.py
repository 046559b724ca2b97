"""What a search finds out on one batch, so that steps which cannot gain take little time, and what it judges with float weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qcompiler import calibrate, prepare_fx
from qcompiler.config.corrections import Corrections
from qcompiler.tune import equalize as equalize_step
from qcompiler.tune import fit_ranges, islands, ranges
from qcompiler.tune.clock import Clock
from qcompiler.tune.diagnose import Diagnosis, diagnose
from qcompiler.tune.equalize import equalize_values
from qcompiler.tune.goal import Goal
from qcompiler.tune.held_out import Item
from qcompiler.tune.moves import MOVES, Move, State
from qcompiler.tune.score import Judge, Score
from qcompiler.tune.search import Search
from qcompiler.tune.search_log import SearchLog
from qcompiler.tune.trial import Trial
from tests.test_equalize import prepared_model
from tests.test_fit_ranges import Outliers, calibrated, images


def silent(done: int, total: int) -> None:
    """Tells nobody."""


def of_name(name: str) -> Move:
    return next(move for move in MOVES if move.name == name)


@pytest.mark.parametrize(("gain", "looked_at"), [(1.9, {1}), (-1.9, {1}), (-5.0, {1, 4}), (3.0, {1, 4})])
def test_channels_that_one_batch_says_nothing_for_are_looked_at_on_one(
    gain: float, looked_at: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """2 dB are asked for. What makes it worse by as much may be too much of what another alpha has less of."""
    _, prepared, x = prepared_model("relu")
    seen = set[int]()

    def sqnr(trial: Trial, corrections: Corrections) -> float:
        seen.add(len(trial.calls))
        return 30.0 + gain * bool(corrections.weights)

    monkeypatch.setattr(Trial, "sqnr", sqnr)
    found = equalize_values(prepared, [x] * 6, Corrections(), silent)
    assert seen == looked_at and bool(found.weights) == (gain >= 2)
    equalize_step(prepared, [x] * 6)
    assert 4 in seen  # the function itself is not asked for a gain


def test_the_ends_of_the_first_look_are_of_another_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """On its own batch no alpha cuts anything off, and looks better than it is."""
    from qcompiler.tune import channel_ends

    _, prepared, x = prepared_model("relu")
    data, given = [x + number for number in range(3)], []
    own = channel_ends.channel_ends

    def ends(twin: object, axes: object, batches: list[tuple[tuple[Tensor], object]], start: int = 0) -> object:
        given.append((start, [args[0] for args, _ in batches]))
        return own(twin, axes, batches, start)  # type: ignore[arg-type]

    monkeypatch.setattr(channel_ends, "channel_ends", ends)
    equalize_values(prepared, data, Corrections(), silent)
    assert given[0][0] == 2 and len(given[0][1]) == 1 and torch.equal(given[0][1][0], data[2])


def test_ranges_that_one_batch_promises_little_for_are_left_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data, told = images(4), list[int]()
    prepared = calibrated(Outliers(0.01), data)
    items = [Item((x,), {}, x) for x in data]
    parts = (Score(20.0, 0.0), Score(20.5, 0.0))  # nearly all of the noise is that of values, so that weights hide nothing
    state = State(prepared, items, 0, Corrections(), Diagnosis(parts[0], Score(40.0, 0.0), parts[1]), parts[0])
    for left, batches in ((0.95, 1), (0.5, 4)):
        told.clear()
        monkeypatch.setattr(ranges, "_left", lambda found, left=left: left)
        found = of_name("ranges").make(state, lambda done, total: told.append(done), 1.0)
        assert len(told) == batches and bool(found.ranges) == (batches == 4)
    few = replace(state, score=Score(10.0, 0.0), taken=("reconstruct",))  # values make a tenth of what is left: half of it gains 0.2 dB
    told.clear()
    assert of_name("ranges-again").make(few, lambda done, total: told.append(done), 1.0) is few.corrections and told == [1]


def test_what_narrower_ranges_leave_is_promised_by_the_first_batch() -> None:
    """And held: the error of the results falls by no more than that, on all batches."""
    data, promised = images(4), list[float]()
    prepared = calibrated(Outliers(0.01), data)

    def worth(left: float) -> bool:
        promised.append(left)
        return True

    found = ranges.fit_ranges_worth(prepared, data, Corrections(), (0, None), worth)
    assert found == fit_ranges(prepared, data) and len(promised) == 1 and 0 < promised[0] < 0.5
    calm = calibrated(Outliers(1.0), [x.clamp(-2, 2) for x in data])
    ranges.fit_ranges_worth(calm, data[:1], Corrections(), (0, None), worth)
    assert promised[1] > 0.9


def test_islands_end_where_the_rest_cannot_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that makes nearly all of the noise is kept; behind it all others together gain too little, so none of them is tried."""
    from tests.test_autotune import Net

    x, tried = torch.randn(4, 3, 12, 12), list[frozenset[str]]()
    prepared = prepare_fx(Net().eval(), None, (x,))
    calibrate(prepared, [x])

    def sqnr(trial: Trial, corrections: Corrections) -> float:
        kept = frozenset(corrections.keep_float)
        tried.append(kept)
        return 20.0 + 5.0 * ("stem" in kept) + 0.04 * len(kept)

    monkeypatch.setattr(islands, "SMALL", 1.0)
    monkeypatch.setattr(Trial, "sqnr", sqnr)
    kept = islands.islands(prepared, Item((x,), {}, x), Corrections(), silent)
    assert kept == {"stem"} and tried[-1] == {"stem"} and len(tried[1]) > 2


def test_what_weights_hide_is_judged_with_float_weights() -> None:
    """Fitted ranges show little behind the noise of weights and much without it. New codes then stand on them."""
    data = images(6)
    model = Outliers(0.01).eval()
    prepared = calibrated(model, data[:4])
    items = [Item((x,), {}, x) for x in data]
    judge = Judge.of(model, items[4:], None)
    search = Search(State(prepared, items[:4], 0, Corrections()), judge, Goal(), Clock(1e6), SearchLog(None, {}), Score(0.0, 0.0))
    search.best = search.score(Corrections(), "default")
    diagnosis = diagnose(prepared, judge, search.best)
    assert diagnosis is not None
    hidden = replace(diagnosis, default=Score(diagnosis.values.sqnr - 8, 0.0))
    search.state = replace(search.state, diagnosis=hidden, score=hidden.default)
    search.best = Score(200.0, 0.0)  # no step gains on that
    search.run([of_name("ranges")])
    assert search.taken == ["ranges"] and search.best == search.steps[0].score and search.best.sqnr < 200
    search.state = replace(search.state, diagnosis=diagnosis, score=diagnosis.values, taken=(), corrections=Corrections())
    search.best = Score(200.0, 0.0)
    search.run([of_name("ranges")])
    assert not search.steps[1].accepted and "gains" in search.steps[1].why
