"""Ctrl-C at any line of a compile leaves the model and the process as they were: what is set for its time is taken back."""

from __future__ import annotations

import builtins
import contextlib
import copy
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn
from torch._functorch import utils as functorch_utils

import qcompiler as qc
from qcompiler.trace import session

Place = tuple[str, int]
PACKAGE = Path(qc.__file__).parent
X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
# What sets something for a time: each of their lines is tried.
SETTERS = ("ambient.py", "trace/session.py", "trace/numbers.py", "trace/rewritten.py", "trace/mode.py")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.last, self.seen = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), [0]
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.linear(x)).relu()
        while y.abs().max() > 1:
            y = y / 2
        self.mean = self.mean * 0.9 + y.mean(0) * 0.1
        return self.last(y[:, : int(x.shape[1])] + self.mean)


def prepare(model: nn.Module) -> Any:
    return qc.prepare_fx(model, None, (X,))


def train(model: nn.Module) -> Any:
    prepared = qc.prepare_qat_fx(model.train(), None, (X,))
    prepared(X).sum().backward()
    return prepared


def whole(model: nn.Module) -> Any:
    return qc.quantize(model, [X], progress=False)


FLOWS: dict[str, Callable[[nn.Module], Any]] = {"prepare": prepare, "train": train, "quantize": whole}


def process() -> list[Any]:
    """What a compile sets in the process for its time."""
    names = ("__call__", "__getattr__")
    return [
        *(getattr(nn.Module, name) for name in names), builtins.isinstance, builtins.print, warnings.warn, torch.zeros, torch.rand,
        torch.Tensor.expand, torch.Tensor.view, functorch_utils.unwrap_dead_wrappers, Net.forward.__code__, torch.get_default_dtype(),
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.backends.quantized.engine, sys.getrecursionlimit(),
        torch._C._len_torch_function_stack(), torch.are_deterministic_algorithms_enabled(), torch._C._get_mkldnn_enabled(),
        torch.get_rng_state().tolist(), session._owner.ident, session._LOCK.locked(), "int" in globals(), torch.is_autocast_enabled("cpu"),
    ]  # fmt: skip


def model_state(model: nn.Module) -> list[Any]:
    attributes = [(path, sorted(vars(m)), m.training, len(m._forward_hooks)) for path, m in model.named_modules()]
    return [attributes, {name: value.tolist() for name, value in model.state_dict().items()}, list(model.seen)]  # type: ignore[arg-type]


class Interrupt:
    """Watches the lines that a flow runs, of the whole package or of some files. At those that `wanted` chooses, by their number and place,
    a copy of this process raises KeyboardInterrupt, and this one goes on: a flow runs once, however many of its lines are tried."""

    def __init__(self, files: tuple[str, ...] | None, wanted: Callable[[int, Place], bool] = lambda number, place: False) -> None:
        self.files = None if files is None else {str(PACKAGE / file) for file in files}
        self.wanted, self.count, self.places = wanted, 0, list[Place]()
        self.wrong: list[tuple[Place, str]] = []  # where it was interrupted, and what was not taken back
        self.copy: int | None = None  # of a copy: where it tells what it finds

    def _watches(self, file: str) -> bool:
        return file in self.files if self.files is not None else file.startswith(str(PACKAGE))

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not self._watches(frame.f_code.co_filename) or frame.f_code.co_name == "<listcomp>":  # one line, many times
            return None
        if event == "line" and self.copy is None:
            place = frame.f_code.co_filename, frame.f_lineno
            if self.wanted(self.count, place) and self._is_copy(place):
                raise KeyboardInterrupt
            self.count += 1
        return self.trace

    def _is_copy(self, place: Place) -> bool:
        """Goes on twice: True in the copy; False in this process, once the copy has told what it finds."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            self.copy = writer
            return True
        os.close(writer)
        with open(reader) as pipe:
            said = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        self.places.append(place)
        if said or status:
            self.wrong.append((place, said or f"the process ended with {status}"))
        return False

    def run(self, flow: Callable[[nn.Module], Any], model: nn.Module) -> None:
        before = sys.gettrace()
        sys.settrace(self.trace)
        try:
            flow(model)
        finally:
            sys.settrace(before)


def check(name: str, interrupt: Interrupt) -> None:
    model = Net().eval()
    model.train(name == "train")
    known, before = model_state(model), process()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            interrupt.run(FLOWS[name], model)
        if interrupt.copy is not None:
            wrong = [i for i, (a, b) in enumerate(zip(before, process(), strict=True)) if a != b]
            told = [f"numbers {wrong} of the process"] * bool(wrong) + ["the model"] * (known != model_state(model))
            os.write(interrupt.copy, ", ".join(told).encode())
            os._exit(0)
    finally:
        if interrupt.copy is not None:
            os._exit(1)  # whatever it met: a copy never goes on with other tests
    assert not interrupt.wrong, f"not taken back: {interrupt.wrong}"


pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12: where a process has threads
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system copies no process")


@needs_fork
@pytest.mark.slow
def test_every_line_that_sets_something() -> None:
    interrupt = Interrupt(SETTERS)
    interrupt.wanted = lambda number, place: place not in interrupt.places
    check("prepare", interrupt)
    assert len(interrupt.places) > 150


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("name", FLOWS)
def test_lines_of_the_whole_compile(name: str) -> None:
    """At the first line of each fiftieth part."""
    interrupt = Interrupt(None)
    FLOWS[name](Net().train(name == "train"))  # what is made once in a process
    check(name, interrupt)
    step = interrupt.count // 50
    interrupt = Interrupt(None, lambda number, place: number % step == 0)
    check(name, interrupt)
    assert len(interrupt.places) >= 40


def test_the_next_compile_is_as_the_first() -> None:
    class Here(Interrupt):
        def _is_copy(self, place: Place) -> bool:
            return True

    expected = whole(Net().eval())(X)
    torch.manual_seed(0)
    model = Net().eval()
    reference = whole(copy.deepcopy(model))(X)
    with pytest.raises(KeyboardInterrupt):
        Here(None, lambda number, place: number == 5000).run(whole, copy.deepcopy(model))
    assert torch.equal(whole(model)(X), reference) and expected.shape == reference.shape
