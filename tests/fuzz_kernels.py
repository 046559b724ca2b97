"""A fuzz of the kernels that the table names, each alone: `python -m tests.fuzz_kernels --cases 2000 --engine x86 --isa AVX512_CORE_VNNI`.

Every call runs in a child process, so that a crash is a finding with its case, and the next call goes on in a new child; so is one that
takes longer than a minute. The oracle is float64: within one quantum, exact for copies, max pools and tables; kernels that give floats
within the sums' own rounding. `--isa` limits oneDNN (ONEDNN_MAX_CPU_ISA).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompiler.backends.torch.bench.cases import Case, real
from qcompiler.backends.torch.bench.measure import Bench
from qcompiler.backends.torch.kernels.table import Refused, select
from qcompiler.backends.torch.site import ENGINES, host_isa
from tests.random_float_kernels import FloatDraw
from tests.random_float_kernels import check as check_floats
from tests.random_kernels import FAMILIES, Draw, draw

EXACT = ("relu", "max_pool", "adaptive_max", "flatten", "transpose", "squeeze", "unsqueeze", "select", "contiguous", "flip", "chunk",
         "repeat_interleave", "amax", "amin", "abs", "stack_same")  # fmt: skip
SECONDS = 60  # a call, compiled and run; a kernel that hangs is ended by the alarm and told as signal 14
LIMITS = ("", "AVX512_CORE_VNNI")  # of oneDNN; "" is all that the machine has


@dataclass(frozen=True)
class Finding:
    """What a call did wrong: how many quanta it was off, or the exception, or the signal that ended the process."""

    engine: str
    number: int
    problem: str
    call: str

    def __str__(self) -> str:
        return f"{self.engine} {self.number}: {self.problem}: {self.call}"


def _off(result: Any, truths: tuple[Tensor, ...], scale: float, zero_point: int) -> int:
    results = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    assert len(results) == len(truths), "number of results"
    worst = 0
    for got, exact in zip(results, truths):
        assert got.shape == exact.shape, f"shape {tuple(got.shape)} instead of {tuple(exact.shape)}"
        codes = (torch.round(exact / scale) + zero_point).clamp(0, 255)
        worst = max(worst, int((got.int_repr().double() - codes).abs().max())) if codes.numel() else worst
    return worst


def inputs(args: Sequence[Any]) -> list[Tensor]:
    flat = [a for arg in args for a in (arg if isinstance(arg, list) else [arg])]
    return [a for a in flat if isinstance(a, Tensor) and a.is_quantized]


def _truth(case: Case) -> tuple[Tensor, ...]:
    """In float64; resizing in float32, whose rounding decides where an element comes from."""
    result = case.row.fn(real(case.args[0]).float(), **case.attributes).double() if case.op == "interpolate" else case.truth()
    return result if isinstance(result, tuple) else (result,)


def _seen(drawn: Draw) -> Tensor:
    """All results, so that codes span them: a scale made for a result that is constant would tell nothing of the others."""
    return torch.cat([t.reshape(-1) for case in (drawn.case, *drawn.later) for t in _truth(case)])


def check(drawn: Draw | FloatDraw, engine: str) -> str | None:
    """What is wrong with the selected kernel on the call and on those that come later; None where all are right."""
    if isinstance(drawn, FloatDraw):
        return check_floats(drawn, engine)
    bench = Bench(drawn.case, engine, host_isa(), _seen(drawn))
    kernel = select(bench.site)
    if isinstance(kernel, Refused):
        return None  # the op stays float, with that remark
    if kernel.saturates(bench.site) and any(int(x.int_repr().max()) > 127 for x in inputs(drawn.case.args) if x.numel()):
        return None  # such a site gets 7-bit activations, or weights that prove safe
    later = () if kernel.saturates(bench.site) else drawn.later
    allowed = 0 if drawn.case.op.startswith(EXACT) else 1
    bench.graph.output(kernel.emit(bench.site, bench.emit()))
    program = fx.GraphModule(bench.module, bench.graph)
    before, torch.backends.quantized.engine = torch.backends.quantized.engine, engine
    try:
        for place, case in enumerate((drawn.case, *later, drawn.case)):
            off = _off(program(*inputs(case.args)), _truth(case), bench.scale, bench.zero_point)
            if off > allowed:
                return f"{off} quanta at call {place} by {kernel.label}"
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        return f"{type(error).__name__} at call {place} by {kernel.label}: {str(error).splitlines()[0][:120]}"
    finally:
        torch.backends.quantized.engine = before
    return None


def _child(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    for index in range(options.first, options.cases * len(options.engine)):
        print(json.dumps([index]), flush=True)
        signal.alarm(int(os.environ.get("FUZZ_SECONDS", SECONDS)))
        drawn = draw(options.seed, index % options.cases, options.family)
        if os.environ.get("FUZZ_CRASHES_AT") == str(index):  # for the test of this command
            os.kill(os.getpid(), signal.SIGSEGV)
        if os.environ.get("FUZZ_HANGS_AT") == str(index):
            threading.Event().wait()
        problem = check(drawn, options.engine[index // options.cases])
        if problem is not None:
            print(json.dumps([index, problem, str(drawn)]), flush=True)


def fuzz(cases: int, seed: int, engines: Sequence[str], isa: str = "", family: str | None = None, threads: int = 1) -> Iterator[Finding]:
    """All that is wrong among the first `cases` calls, on each of the engines."""
    first, count = 0, cases * len(engines)
    environment = {**os.environ, **({"ONEDNN_MAX_CPU_ISA": isa} if isa else {})}
    fixed = ["--child", "--cases", cases, "--seed", seed, "--threads", threads, *(word for e in engines for word in ("--engine", e))]
    fixed += ["--family", family] if family else []
    while first < count:
        command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz_kernels", *map(str, [*fixed, "--first", first])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
            assert child.stdout is not None
            index = first - 1
            for line in child.stdout:
                index, *found = json.loads(line)
                if found:
                    yield Finding(engines[index // cases], index % cases, *found)
        if child.returncode == 0:
            return
        if child.returncode > 0:
            raise RuntimeError(f"the child process failed at call {index}: exit status {child.returncode}")
        yield Finding(engines[index // cases], index % cases, f"signal {-child.returncode}", str(draw(seed, index % cases, family)))
        first = index + 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=ENGINES, action="append")
    parser.add_argument("--isa", action="append", help="largest instruction set of oneDNN, such as AVX512_CORE_VNNI; repeat for several")
    parser.add_argument("--family", choices=sorted(FAMILIES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.engine = options.engine or [e for e in ENGINES if e in torch.backends.quantized.supported_engines]
    if options.child:
        _child(options)
        return 0
    wrong = 0
    for isa in options.isa or LIMITS:
        print(f"{', '.join(options.engine)}; {isa or 'all instruction sets'}; {options.cases} calls on each engine")
        for finding in fuzz(options.cases, options.seed, options.engine, isa, options.family, options.threads):
            print(f"  {finding}", flush=True)
            wrong += 1
    print(f"{wrong} calls are wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
