"""Calls timed in turn: what else the machine does meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qcompiler.timing.spread import Spread


@dataclass(frozen=True)
class Timed:
    """One call: `wall` as a clock on the wall has it, `processor` as all threads of the process together worked for it."""

    wall: Spread
    processor: Spread


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 3) -> dict[str, Timed]:
    """Each round makes every call once, in an order that goes round, so that none always follows the same one; the `warmup` rounds before
    do not count."""
    names = list(calls)
    wall: dict[str, list[float]] = {name: [] for name in names}
    processor: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        first = turn % len(names) if names else 0
        for name in names[first:] + names[:first]:
            start, worked = time.perf_counter(), time.process_time()
            calls[name]()
            seconds, work = time.perf_counter() - start, time.process_time() - worked
            if turn >= warmup:
                wall[name].append(seconds)
                processor[name].append(work)
    return {name: Timed(Spread.of(wall[name]), Spread.of(processor[name])) for name in names}
