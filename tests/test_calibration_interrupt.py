"""Calibration that stops in the middle: a batch counts as a whole or not at all, and the rest gives what one run would have given."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from qcompiler import (
    CalibrationError,
    QConfig,
    calibrate,
    convert_fx,
    get_default_qconfig_mapping,
    prepare_fx,
)
from qcompiler.config.qconfig_mapping import get_default_qat_qconfig_mapping
from qcompiler.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    RecordingObserver,
    default_per_channel_weight_observer,
    get_observer_state_dict,
    load_observer_state_dict,
)
from tests.flow import ENGINES, QUANTIZED, randn

BATCHES = [randn(2, 3, 8, 8, seed=i) * (i + 1) for i in range(4)]  # each widens the ranges
State = dict[str, Tensor]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        y: Tensor = torch.cat([x, self.b(x) + x], 1)
        return y


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


MAPPINGS: dict[str, Callable[[], tuple[Any, str]]] = {
    **{engine: lambda engine=engine: (get_default_qconfig_mapping(engine), engine) for engine in ENGINES},
    "minmax": lambda: (QConfig(MinMaxObserver, default_per_channel_weight_observer), "x86"),
    "moving-average": lambda: (QConfig(MovingAverageMinMaxObserver, default_per_channel_weight_observer), "x86"),
    "histogram": lambda: (QConfig(HistogramObserver.with_args(bins=64), default_per_channel_weight_observer), "x86"),
    "qat": lambda: (get_default_qat_qconfig_mapping("x86"), "x86"),
}


def prepared_for(name: str) -> fx.GraphModule:
    mapping, engine = MAPPINGS[name]()
    return prepare_fx(net(), mapping, (BATCHES[0],), QUANTIZED, engine=engine)


def copied(prepared: nn.Module) -> State:
    return {name: value.clone() for name, value in get_observer_state_dict(prepared).items()}


def equal(a: State, b: State) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def states(name: str) -> list[State]:
    """The state after 0, 1, ... batches of a run that nothing stops."""
    prepared = prepared_for(name)
    found = [copied(prepared)]
    for batch in BATCHES:
        calibrate(prepared, [batch])
        found.append(copied(prepared))
    return found


class Interrupt:
    """KeyboardInterrupt at the n-th line that runs in the compiler or in a graph's code; counts the lines where n is 0."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.count = at, 0

    def __enter__(self) -> Interrupt:
        self.before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self.before)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        name = frame.f_code.co_filename
        return self._line if "qcompiler" in name or name.startswith("<eval_with_key>") else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self.count += 1
            if self.count == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._line


def batches_of(error: BaseException, state: State, wanted: list[State]) -> int:
    """What the note says; without one the calibration had not begun, or it was over."""
    notes = getattr(error, "__notes__", None)
    if notes is None:
        return len(BATCHES) if equal(state, wanted[-1]) else 0
    return int(next(word for word in notes[0].split() if word.isdigit()))


@pytest.mark.parametrize("name", MAPPINGS)
def test_an_interrupt_anywhere(name: str) -> None:
    """At lines all over a run: the observers hold whole batches, as many as the note says, and the rest completes them exactly."""
    wanted, prepared = states(name), prepared_for(name)
    with Interrupt() as clean:
        calibrate(prepared, BATCHES)
    met = set()
    for at in range(1, clean.count + 1, clean.count // 23):
        prepared = prepared_for(name)
        with pytest.raises(KeyboardInterrupt) as caught, Interrupt(at):
            calibrate(prepared, BATCHES)
        done = batches_of(caught.value, copied(prepared), wanted)
        assert equal(copied(prepared), wanted[done]), (at, done)
        if done < len(BATCHES):
            assert calibrate(prepared, BATCHES[done:]) == len(BATCHES) - done
        assert equal(copied(prepared), wanted[-1])
        met.add(done)
    assert met >= set(range(len(BATCHES)))


@pytest.mark.parametrize("name", MAPPINGS)
def test_between_batches_and_in_another_process(name: str) -> None:
    """The loader is interrupted; what was saved is loaded into a module that is prepared anew."""

    def loader() -> Iterator[Tensor]:
        yield from BATCHES[:2]
        raise KeyboardInterrupt

    wanted, prepared = states(name), prepared_for(name)
    with pytest.raises(KeyboardInterrupt):
        calibrate(prepared, loader())
    saved = copied(prepared)
    assert equal(saved, wanted[2])
    again = prepared_for(name)
    load_observer_state_dict(again, saved)
    calibrate(again, BATCHES[2:])
    assert equal(copied(again), wanted[-1])
    whole = prepared_for(name)
    calibrate(whole, BATCHES)
    assert torch.equal(convert_fx(again)(BATCHES[0]), convert_fx(whole)(BATCHES[0]))


@pytest.mark.parametrize("name", ["moving-average", "histogram"])
def test_a_plain_call_leaves_no_half_updated_observer(name: str) -> None:
    """Without `calibrate` each observer has seen a batch or not."""
    wanted, prepared = states(name)[:3], prepared_for(name)
    prepared(BATCHES[0])
    with Interrupt() as clean:
        prepared(BATCHES[1])
    for at in range(1, clean.count + 1, max(clean.count // 40, 1)):
        prepared = prepared_for(name)
        prepared(BATCHES[0])
        with pytest.raises(KeyboardInterrupt), Interrupt(at):
            prepared(BATCHES[1])
        state = copied(prepared)
        observers = {key.rpartition(".")[0] for key in state}
        for observer in observers:
            part = {key: value for key, value in state.items() if key.startswith(f"{observer}.")}
            assert any(all(torch.equal(value, seen[key]) for key, value in part.items()) for seen in wanted[1:]), (at, observer)


def test_a_batch_that_overflows_inside_is_skipped_as_a_whole() -> None:
    """The first observers have seen it when a later one meets an inf."""

    class Overflow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(self.linear(self.linear(x) * 1e30) * 1e3)
            return y

    torch.manual_seed(0)
    model, x = Overflow().eval(), randn(2, 4)
    some = prepare_fx(model, None, (x,))
    calibrate(some, [x])
    before = copied(some)
    with pytest.raises(CalibrationError, match="batch 0"):
        calibrate(some, [x * 1e6])
    assert equal(copied(some), before)
    assert calibrate(some, [x * 1e6, x], skip_nonfinite=True) == 1
    assert equal(copied(some), before)


def test_what_an_observer_keeps_in_lists_is_taken_back_too() -> None:
    mapping = QConfig(RecordingObserver, default_per_channel_weight_observer)
    prepared = prepare_fx(net(), mapping, (BATCHES[0],))
    calibrate(prepared, BATCHES[:2])
    wanted = [list(m.tensor_val) for m in prepared.modules() if isinstance(m, RecordingObserver)]
    other = prepare_fx(net(), mapping, (BATCHES[0],))
    with Interrupt() as clean:
        calibrate(other, BATCHES[2:3])
    with pytest.raises(KeyboardInterrupt), Interrupt(clean.count * 2 // 3):
        calibrate(prepared, BATCHES[2:3])
    found = [list(m.tensor_val) for m in prepared.modules() if isinstance(m, RecordingObserver)]
    assert [len(v) for v in found] == [2] * len(wanted) and all(torch.equal(a, b) for v, w in zip(found, wanted) for a, b in zip(v, w))
