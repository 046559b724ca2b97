"""bench: a float model, what each back end makes of it, and their scripts, timed in turn in one run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qcompiler.debug.fitted_table import Column, FittedTable, as_text
from qcompiler.errors import ConfigError, InputError, QCompilerError
from qcompiler.executable import Executable
from qcompiler.executable.call_forms import CallForms
from qcompiler.inputs.checks import check_whole
from qcompiler.inputs.kinds import check_kinds
from qcompiler.timing import Machine, Timed, cpu_name, in_turn
from qcompiler.workflow.first_batch import first_batch

FLOAT, SCRIPTED = "float", "scripted"
BACKENDS = ("torch", "native")
Make = Callable[..., nn.Module]


@dataclass(frozen=True)
class Bench:
    """What one run of `bench` found. `times`: by what was timed, the first of which ratios refer to. `left_out`: what could not be timed,
    and why. `inputs`: the shapes of what they were called with. `note`: a warning where other processes took the machine's time."""

    times: Mapping[str, Timed]
    left_out: Mapping[str, str]
    inputs: str
    threads: int
    rounds: int
    cpu: str
    torch: str
    note: str = ""

    def speedup(self, name: str, processor: bool = False) -> float:
        """How many times as fast as the first: by medians of wall time, or of processor time."""
        first, one = next(iter(self.times.values())), self.times[name]
        return first.processor.median / one.processor.median if processor else first.wall.median / one.wall.median

    def to_data(self) -> dict[str, object]:
        """Plain JSON data; times in milliseconds."""
        times = {name: {"wall": t.wall.to_data(), "processor": t.processor.to_data()} for name, t in self.times.items()}
        return {
            "format": "qcompiler-bench", "version": 1, "times": times, "left_out": dict(self.left_out), "inputs": self.inputs,
            "threads": self.threads, "rounds": self.rounds, "cpu": self.cpu, "torch": self.torch, "note": self.note,
        }  # fmt: skip

    def to_json(self) -> str:
        return json.dumps(self.to_data(), indent=1, allow_nan=False)

    @property
    def conditions(self) -> str:
        """What the times hold for, in one line."""
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return f"{self.inputs}, {threads}, medians of {self.rounds} in turn; {self.cpu}; torch {self.torch}"

    def table(self) -> Any:
        """For a rich console; it shows the columns that there is room for."""
        names, times = list(self.times), list(self.times.values())
        return FittedTable(
            self.conditions,
            [
                Column("", names, names=True),
                Column("wall ms", [f"{t.wall.median:.2f}" for t in times], right=True),
                Column("p5", [f"{t.wall.p5:.2f}" for t in times], rank=3, right=True),
                Column("p95", [f"{t.wall.p95:.2f}" for t in times], rank=3, right=True),
                Column("as fast", [f"{self.speedup(name):.2f} x" for name in names], right=True),
                Column("processor ms", [f"{t.processor.median:.2f}" for t in times], rank=2, right=True),
                Column("p5", [f"{t.processor.p5:.2f}" for t in times], rank=4, right=True),
                Column("p95", [f"{t.processor.p95:.2f}" for t in times], rank=4, right=True),
                Column("as little work", [f"{self.speedup(name, processor=True):.2f} x" for name in names], rank=1, right=True),
            ],
        )

    def __str__(self) -> str:
        lines = [f"WARNING: {self.note}"] if self.note else []
        return as_text(*lines, self.table(), *(f"not timed: {name}: {why}" for name, why in self.left_out.items()))


@dataclass(frozen=True)
class Run:
    """How to time: rounds that count, rounds before them, and the threads of torch, None for those that are set."""

    rounds: int
    warmup: int
    threads: int | None

    def __post_init__(self) -> None:
        for what, value, least in (("rounds", self.rounds, 1), ("warmup", self.warmup, 0), ("threads", self.threads, 1)):
            if value is not None or what != "threads":
                check_whole(value, what, least)


def timed(modules: Mapping[str, nn.Module], data: object, how: Run, left_out: Mapping[str, str] | None = None) -> Bench:
    """The modules in turn, on the first batch of the data. Raises InputError where one of them does not take it."""
    _, args, kwargs = first_batch(data)
    calls = {name: _call(name, module, args, kwargs) for name, module in modules.items()}
    with torch.inference_mode(), _threads(how.threads) as threads:
        machine = Machine()
        found = in_turn(calls, how.rounds, how.warmup)
        note = machine.note()
    return Bench(found, dict(left_out or {}), _shapes((args, kwargs)), threads, how.rounds, cpu_name(), torch.__version__, note)


def variants(
    model: nn.Module, quantize: Make, backends: Sequence[str] | None, scripted: bool
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """What is timed of a model, and what cannot be: float, each back end, and the scripts of these. A converted model stands for itself."""
    converted = isinstance(model, (Executable, CallForms))
    found: dict[str, nn.Module] = {getattr(model, "_backend", "") or "int8" if converted else FLOAT: model}
    left_out: dict[str, str] = {}
    if backends is not None and (isinstance(backends, str) or not isinstance(backends, Sequence)):
        raise ConfigError(f"backends are a list of names, not {backends!r:.40}", code="bench")
    for name in () if converted else BACKENDS if backends is None else backends:
        try:
            found[name] = quantize(backend=name)
        except QCompilerError as error:
            if backends is not None or error.code != "no-compiler":
                raise
            left_out[name] = error.message
    for name, module in list(found.items()) if scripted else ():
        try:
            found[f"{name}, {SCRIPTED}"] = _scripted(module)
        except Exception as error:  # torch.jit raises whatever it likes for models that it cannot read
            left_out[f"{name}, {SCRIPTED}"] = str(error).strip().split("\n")[0][:160] or type(error).__name__
    return found, left_out


def _scripted(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit's own
        frozen: nn.Module = torch.jit.freeze(torch.jit.script(module.eval()))
    return frozen


def _call(name: str, module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Callable[[], object]:
    if isinstance(module, nn.Module):
        check_kinds(module)
    try:
        with torch.inference_mode():
            module(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"{name} does not take the first batch: {error}", code="input-shape") from error
    return lambda: module(*args, **kwargs)


@contextmanager
def _threads(count: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _shapes(value: object) -> str:
    leaves = torch.utils._pytree.tree_leaves(value)
    return ", ".join("x".join(map(str, leaf.shape)) for leaf in leaves if isinstance(leaf, torch.Tensor)) or "no tensors"
