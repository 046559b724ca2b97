"""What a search holds in memory: the tensors that live at once, counted by torch's own allocator, and what goes to a file comes back."""

from __future__ import annotations

import gc
import tempfile
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import qcompiler
from qcompiler.ir.types import QParams
from qcompiler.tune import equalize, fit_ranges, ranges, reconstruct, saved, sensitivity, shelf
from qcompiler.tune.diagnose import diagnose
from qcompiler.tune.held_out import read
from qcompiler.tune.islands import islands
from qcompiler.tune.ranges import PIECE, _Weighed
from qcompiler.tune.saved import Held, Saved
from qcompiler.tune.score import Judge
from qcompiler.tune.shelf import Written
from tests.test_equalize import MODELS, prepared_model


def live(run: Callable[[], object]) -> tuple[int, int]:
    """(the most bytes of tensors that live at once, less those before; those that are left at the end, as long as the result is there)."""
    gc.collect()
    gc.disable()  # what only a collection frees counts as left
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as seen:
            result = run()
    finally:
        gc.enable()
    at = most = 0
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda event: event.start_ns()):
        at += event.nbytes()
        most = max(most, at)
    del result
    return most, at


class Deep(nn.Module):
    """Many values of 512 KB, and weights of 290 KB."""

    def __init__(self, depth: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 1)
        self.body = nn.Sequential(*[m for _ in range(depth) for m in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())])
        self.head = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1024))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(self.stem(x)).mean((2, 3)))
        return y


def batches(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 64, 64, generator=generator) for _ in range(count)]


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that may lie in a file does, so that a small network shows what a large one does."""
    monkeypatch.setattr(saved, "ROOM", 0)
    monkeypatch.setattr(shelf, "ROOM", 0)


def test_a_search_holds_a_few_times_the_model_and_a_batch(no_room: None) -> None:
    model, data = Deep().eval(), batches(2)
    with torch.inference_mode():
        of_batch, _ = live(lambda: model(data[0]))
    of_model = sum(t.nbytes for t in model.state_dict().values())
    most, _ = live(lambda: qcompiler.autotune(model, data, progress=False, seconds=3600))
    assert most <= 2.8 * (of_model + of_batch)


def _steps(prepared: Any, data: list[Tensor]) -> dict[str, Callable[[], object]]:
    held = read(data[:1], False)
    judge = Judge.of(qcompiler.convert_to_reference_fx(prepared), held, None)
    score = judge.of_float()
    return {
        "ranges": lambda: fit_ranges(prepared, data), "codes": lambda: reconstruct(prepared, data),
        "channels": lambda: equalize(prepared, data), "diagnosis": lambda: diagnose(prepared, judge, score),
        "islands": lambda: islands(prepared, held[0], qcompiler.tune.Corrections(), lambda done, total: None),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["ranges", "codes", "channels", "diagnosis", "islands"])
def test_a_step_leaves_nothing_but_its_result(name: str, no_room: None) -> None:
    """Graphs refer to themselves: their tensors would stay up to the next garbage collection."""
    model, data = Deep(4).eval(), batches(2)
    prepared = qcompiler.prepare_fx(model, None, (data[0],))
    qcompiler.calibrate(prepared, data)
    of_model = sum(t.nbytes for t in model.state_dict().values())
    run = _steps(prepared, data)[name]
    run()  # what is kept for later calls is there
    _, left = live(run)
    assert left < of_model * {"codes": 0.6, "channels": 1.3}.get(name, 0.3)  # int8 codes, float weights: the result


def test_a_backward_pass_does_not_hold_all_values(no_room: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the depth is not twice the memory."""

    def most(depth: int) -> int:
        data = batches(1)
        prepared = qcompiler.prepare_fx(Deep(depth).eval(), None, (data[0],))
        qcompiler.calibrate(prepared, data)
        return live(lambda: fit_ranges(prepared, data))[0]

    one = 4 * 8 * 64 * 64 * 4
    assert most(16) - most(8) < 2 * one
    monkeypatch.setattr(saved, "ROOM", 2**30)
    assert most(16) - most(8) > 8 * one


@pytest.mark.parametrize("name", MODELS)
def test_ranges_are_the_same_from_a_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, prepared, x = prepared_model(name)
    in_memory = fit_ranges(prepared, [x])
    monkeypatch.setattr(saved, "ROOM", 0)
    monkeypatch.setattr(saved, "LEAST", 0)
    assert fit_ranges(prepared, [x]) == in_memory


def test_pieces_count_as_the_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    value, gradient = torch.randn(3, PIECE - 5).relu(), torch.randn(3, PIECE - 5)
    grid = QParams(0.01, 3, 0, 255, torch.uint8)
    whole, parts = _Weighed(0, grid), _Weighed(0, grid)
    parts.add(value.T, gradient.T)
    monkeypatch.setattr(ranges, "PIECE", 2**30)
    whole.add(value.T, gradient.T)
    assert torch.equal(whole.mass, parts.mass) and float(whole.mass.sum()) > 0


class Idle(nn.Module):
    """A value that no result is made of has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.idle = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        return self.last(x), self.idle(x).argmax(1)


@pytest.mark.parametrize("make", [Idle, lambda: Deep(1)])
def test_no_run_outlives_its_batch(make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """The hooks of a run are held by torch's graph of the results, where no garbage collection sees them."""
    runs: list[weakref.ref[object]] = []

    class Watched(sensitivity._Run):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            runs.append(weakref.ref(self))

    monkeypatch.setattr(sensitivity, "_Run", Watched)
    data = batches(2)
    prepared = qcompiler.prepare_fx(make().eval(), None, (data[0],))
    qcompiler.calibrate(prepared, data)
    fit_ranges(prepared, data)
    gc.collect()
    assert len(runs) == 2 and all(run() is None for run in runs)


def test_what_is_kept_comes_back_as_it_was(no_room: None) -> None:
    torch.manual_seed(0)
    kinds = [torch.randn(4, 200, 100), torch.randn(4, 8, 50, 60).to(memory_format=torch.channels_last), torch.randn(300, 200).T,
             torch.randn(300, 200)[:, ::2], torch.randn(3), torch.randn(300, 1).expand(300, 300)]  # fmt: skip
    with Saved() as kept:
        for value in kinds:
            made = kept.keep(value)
            found = kept.get(made)
            assert torch.equal(found, value) and found.stride() == value.stride()
        assert isinstance(kept.keep(kinds[0]), Written) and kept.keep(kinds[0]) is kept.keep(kinds[0].detach())
        before, wanted = kept.keep(kinds[0]), kinds[0].clone()
        kinds[0].zero_()
        assert torch.equal(kept.get(before), wanted) and not kept.get(kept.keep(kinds[0])).any()
        for number in range(20):  # a new tensor in the place of one that is gone
            assert bool((kept.get(kept.keep(torch.full((200, 200), float(number)))) == number).all())
        small = kept.keep(kinds[4])
        kinds[4].zero_()
        with pytest.raises(RuntimeError, match="changed in place"):
            kept.get(small)
    with Saved([kinds[0]]) as kept:
        assert isinstance(kept.keep(kinds[0]), Held)


def test_where_no_file_can_be_written_all_stays_in_memory(no_room: None, monkeypatch: pytest.MonkeyPatch) -> None:
    data = batches(2)
    prepared = qcompiler.prepare_fx(Deep(2).eval(), None, (data[0],))
    qcompiler.calibrate(prepared, data)
    wanted = fit_ranges(prepared, data)

    def refuse() -> None:
        raise OSError("no room")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert fit_ranges(prepared, data) == wanted
