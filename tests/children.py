"""Cases by number, each tried in a child process: one that crashes it, hangs it or raises what it must not is told with its number.

With a log, what is done stands in a file, a line of JSON a case: a run that was ended goes on behind it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEMORY = 8 * 2**30  # address space of a child: torch itself maps some 4 GB
BUSY, WAITING = 120, 900  # seconds of processor time, and by the clock, after which what hangs is ended: no busy machine is that slow
CHUNK = 200  # cases of one child, so that what torch keeps of each does not add up


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
        signal.setitimer(signal.ITIMER_PROF, BUSY)
        signal.alarm(WAITING)
        outcome, good = outcome_of(lambda number=number: case(number), seconds)  # type: ignore[misc]
        print(json.dumps({"number": number, "outcome": outcome, "good": good}), flush=True)
    print(json.dumps({"number": first + count - 1, "left": True}), flush=True)


@dataclass
class Results:
    """`outcomes`: how often each; `bad`: numbers, and what happened."""

    outcomes: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[int, str]] = field(default_factory=list)

    def add(self, number: int, outcome: str, good: bool) -> None:
        self.outcomes[outcome if good else "BAD"] += 1
        if not good:
            self.bad.append((number, outcome))


class Log:
    """What is done of one command, in a file of JSON lines; without a file in memory alone. A later line of a number counts."""

    def __init__(self, file: Path | None = None, *command: object) -> None:
        self.file, self.done = file, dict[int, tuple[str, bool]]()
        head = json.dumps({"command": list(map(str, command))})
        if file is None or not file.exists():
            self._append(head)
            return
        text = file.read_text()
        first, *lines = text.splitlines()
        if first != head:
            raise ValueError(f"{file} is the log of another command: {first}")
        for line in lines[: None if text.endswith("\n") else -1]:
            entry = json.loads(line)
            self.done[entry["number"]] = entry["outcome"], entry["good"]
        if not text.endswith("\n"):  # it was ended while it wrote
            file.write_text(text[: text.rindex("\n") + 1])

    def add(self, number: int, outcome: str, good: bool) -> None:
        self.done[number] = outcome, good
        self._append(json.dumps({"number": number, "outcome": outcome, "good": good}))

    def _append(self, line: str) -> None:
        if self.file is not None:
            with self.file.open("a") as stream:
                stream.write(f"{line}\n")


def run(
    command: Sequence[str], first: int, count: int, log: Log, environment: Mapping[str, str] | None = None, chunk: int = CHUNK
) -> Results:
    """All cases; each bad one, and how many are done, is told on stderr as it comes.

    `command`: module and options; it runs with --work FIRST COUNT, anew after a crash and after `chunk` cases.
    """
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | dict(environment or {})
    while (start := next((n for n in range(first, first + count) if n not in log.done), None)) is not None:
        length = next((n for n in range(chunk) if start + n == first + count or start + n in log.done), chunk)
        for case in _child([sys.executable, "-m", *command, "--work", str(start), str(length)], variables, start):
            log.add(*case)
            if not case[2]:
                print(f"number {case[0]}: {case[1]}", file=sys.stderr, flush=True)
        done = sum(first <= n < first + count for n in log.done)
        bad = sum(not log.done[n][1] for n in log.done if first <= n < first + count)
        print(f"{done} of {count} done, {bad} bad", file=sys.stderr, flush=True)
    results = Results()
    for number in range(first, first + count):
        results.add(number, *log.done[number])
    return results


def _child(command: Sequence[str], variables: Mapping[str, str], first: int) -> Iterator[tuple[int, str, bool]]:
    """(number, outcome, good) of each case of one child, and of the case at which, or behind which, it failed."""
    entry: dict[str, Any] = {"number": first}
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=dict(variables)) as child:
            assert child.stdout is not None
            for line in filter(lambda line: line.startswith('{"number"'), child.stdout):
                entry = json.loads(line)
                if "outcome" in entry:
                    yield entry["number"], entry["outcome"], entry["good"]
        errors.seek(0)
        text = " ".join(errors.read().split())[-300:]
    if child.returncode or "left" not in entry:
        where = "at the exit behind" if "left" in entry else "behind" if "outcome" in entry else "in"
        ending = f"signal {-child.returncode}" if child.returncode < 0 else f"exit status {child.returncode}"
        yield entry["number"], f"CRASH: {ending} {where} the case {text}", False


def report(results: Results) -> int:
    """Prints both; 1 where anything is bad."""
    for outcome, number in sorted(results.outcomes.items(), key=lambda item: (-item[1], item[0])):
        print(f"{number:7}  {outcome}")
    for number, text in results.bad:
        print(f"number {number}: {text}")
    return 1 if results.bad else 0
