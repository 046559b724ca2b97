"""Times of a program's steps, taken in whole runs of it: each step finds caches and memory as in a call."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.executable import Executable
from qcompiler.executable.steps import Env, Steps

REPEATS = 5  # runs, each in turn with a call


@dataclass(frozen=True)
class StepTimes:
    """Milliseconds of wall time, the least of several runs each, since a busy machine only adds: by step, and of a call of the module
    itself."""

    steps: Mapping[str, float]
    call: float

    @property
    def together(self) -> float:
        """The sum of the steps, so that what is shown of them are parts of it."""
        return sum(self.steps.values())


def step_times(module: nn.Module, steps: Steps, args: tuple[object, ...], kwargs: Mapping[str, object]) -> StepTimes:
    """Runs step by step in turn with calls of the module. What the back end computes in one piece it times itself. Nothing is changed:
    states and the state of random numbers are brought back, and each run has its own copy of the inputs."""
    seen: dict[str, list[float]] = {}
    calls: list[float] = []
    with torch.random.fork_rng(devices=[]), steps.kept():
        _fresh(lambda *a, **k: module(*a, **k), args, kwargs)
        for _ in range(REPEATS):
            for name, seconds in _run(steps, args, kwargs).items():
                seen.setdefault(name, []).append(seconds)
            calls.append(_fresh(lambda *a, **k: module(*a, **k), args, kwargs))
        inside = module._layer_times(*copies(args), **copies(kwargs)) if isinstance(module, Executable) else None
    found = {name: min(times) * 1e3 for name, times in seen.items()}
    if inside is not None:
        found = {name: ms for name, ms in found.items() if name not in inside.instead_of} | dict(inside.milliseconds)
    return StepTimes(found, min(calls) * 1e3)


def _fresh(call: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]) -> float:
    args, kwargs = copies(args), copies(kwargs)
    start = time.perf_counter()
    call(*args, **kwargs)
    return time.perf_counter() - start


def copies(value: Any) -> Any:
    """The same arguments in memory of their own."""
    return copy.deepcopy(value)


def _run(steps: Steps, args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, float]:
    """Seconds of each call. Values are let go behind their last use, as in the program."""
    env: Env = steps.bind(copies(args), copies(kwargs))
    last = {name: step.name for step in steps.steps for name in (step.name, *step.inputs)}
    free: dict[str, list[str]] = {}
    for name, step_name in last.items():
        free.setdefault(step_name, []).append(name)
    kept, times = steps.results(), dict[str, float]()
    for step in steps.steps:
        start = time.perf_counter()
        env[step.name] = step.run(env)
        if step.kind == "call":
            times[step.name] = time.perf_counter() - start
        for name in free.get(step.name, ()):
            if name not in kept and isinstance(env.get(name), Tensor):
                del env[name]
    return times
