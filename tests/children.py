"""Cases by number, each tried in a child process: one that crashes it, hangs it or raises what it must not is told with its number."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

MEMORY = 8 * 2**30  # address space of a child: torch itself maps some 4 GB
PATIENCE = 120  # seconds after which the alarm kills a child


def outcome_of(case: Callable[[], str], seconds: float) -> tuple[str, bool]:
    """What a case says of itself and whether that is good; an exception of any kind, or more processor time, is not."""
    start = time.process_time()
    try:
        outcome, good = case(), True
    except Exception as error:
        frames = list(traceback.extract_tb(error.__traceback__))[-3:]
        at = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
        text = next(iter(str(error).splitlines()), "")
        outcome, good = f"RAW {type(error).__name__}: {text[:160]} at {at}", False
    if time.process_time() - start > seconds:
        outcome, good = f"HANG {time.process_time() - start:.1f} s, {outcome}", False
    return outcome, good


def work(first: int, count: int, case: Callable[[int], str], seconds: float) -> None:
    """A child's loop: a line of JSON before and one after each case."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for number in range(first, first + count):
        print(json.dumps({"number": number}), flush=True)
        signal.alarm(PATIENCE)
        outcome, good = outcome_of(lambda number=number: case(number), seconds)  # type: ignore[misc]
        print(json.dumps({"number": number, "outcome": outcome, "good": good}), flush=True)


def run(module: str, first: int, count: int, options: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> tuple[
    Counter[str], list[tuple[int, str]]
]:  # fmt: skip
    """Counts of outcomes and the bad ones with their numbers. `module` runs with --work FIRST COUNT options, anew after a crash."""
    outcomes: Counter[str] = Counter()
    bad: list[tuple[int, str]] = []
    at = first
    while at < first + count:
        command = [sys.executable, "-m", module, "--work", str(at), str(first + count - at), *options]
        variables = os.environ | {"OMP_NUM_THREADS": "1"} | dict(environment or {})
        child = subprocess.run(command, capture_output=True, text=True, env=variables)
        lines = [json.loads(line) for line in child.stdout.splitlines() if line.startswith('{"number"')]
        for line in (entry for entry in lines if "outcome" in entry):
            outcomes[line["outcome"] if line["good"] else "BAD"] += 1
            bad += [(line["number"], line["outcome"])] if not line["good"] else []
        finished = not lines or "outcome" in lines[-1]
        if finished and child.returncode:
            raise RuntimeError(child.stderr[-2000:])
        at = lines[-1]["number"] + 1
        if not finished:
            bad.append((lines[-1]["number"], f"CRASH: signal {-child.returncode} {child.stderr.strip()[-200:]}"))
            outcomes["BAD"] += 1
    return outcomes, bad


def report(outcomes: Counter[str], bad: Sequence[tuple[int, str]]) -> int:
    """Prints both; 1 where anything is bad."""
    for outcome, number in outcomes.most_common():
        print(f"{number:7}  {outcome}")
    for number, text in bad:
        print(f"number {number}: {text}")
    return 1 if bad else 0
