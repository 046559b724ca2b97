"""Ctrl-C at any line of a compile leaves the model and the process as they were: what is set for its time is taken back."""

from __future__ import annotations

import builtins
import copy
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
    """Raises KeyboardInterrupt at one line event: the first or last of a line, or the one of a number among all of the package."""

    def __init__(self, files: tuple[str, ...] | None) -> None:
        self.files = None if files is None else {str(PACKAGE / file) for file in files}
        self.events: list[tuple[str, int]] = []
        self.at: int | None = None

    def _wanted(self, file: str) -> bool:
        return file in self.files if self.files is not None else file.startswith(str(PACKAGE))

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not self._wanted(frame.f_code.co_filename) or frame.f_code.co_name == "<listcomp>":  # one line, many times
            return None
        if event == "line":
            self.events.append((frame.f_code.co_filename, frame.f_lineno))
            if self.at == len(self.events) - 1:
                raise KeyboardInterrupt
        return self.trace

    def run(self, flow: Callable[[nn.Module], Any], model: nn.Module, at: int | None) -> bool:
        """Whether it was interrupted."""
        self.events, self.at = [], at
        before = sys.gettrace()
        sys.settrace(self.trace)
        try:
            flow(model)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False


def check(name: str, interrupt: Interrupt, places: list[int]) -> None:
    failed = []
    for at in places:
        model = Net().eval()
        model.train(name == "train")
        known = model_state(model)
        before = process()
        interrupt.run(FLOWS[name], model, at)
        after = process()
        if before != after or known != model_state(model):
            wrong = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
            failed.append((*interrupt.events[at], wrong))
            pytest.fail(f"not taken back: {failed}")


@pytest.mark.slow
def test_every_line_that_sets_something() -> None:
    interrupt = Interrupt(SETTERS)
    interrupt.run(prepare, Net().eval(), None)
    first = {place: i for i, place in reversed(list(enumerate(interrupt.events)))}
    check("prepare", interrupt, sorted(first.values()))


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOWS)
def test_lines_of_the_whole_compile(name: str) -> None:
    interrupt = Interrupt(None)
    interrupt.run(FLOWS[name], Net().train(name == "train"), None)
    count = len(interrupt.events)
    check(name, interrupt, [count * i // 5 for i in range(5)])


def test_the_next_compile_is_as_the_first() -> None:
    interrupt, expected = Interrupt(None), whole(Net().eval())(X)
    torch.manual_seed(0)
    model = Net().eval()
    reference = whole(copy.deepcopy(model))(X)
    interrupt.run(whole, copy.deepcopy(model), 5000)
    assert torch.equal(whole(model)(X), reference) and expected.shape == reference.shape
