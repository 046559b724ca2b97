"""The time that a search has, and what it shows of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qcompiler.tune.together import together

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SURE = 0.05  # share of a step behind which its pace tells its end
PATIENCE = 0.1  # share of the time that is left which a step may take before its pace counts


class OutOfTime(Exception):
    """A step that would end too late. `needed`: seconds that it would take in all; `left`: that there were for it."""

    def __init__(self, needed: float, left: float) -> None:
        super().__init__(f"it takes about {_seconds(needed)}, and {_seconds(left)} are left for it" if left > 0 else "the time is over")
        self.needed, self.left = needed, left


def _seconds(count: float) -> str:
    return f"{count:.0f} s" if count >= 10 else f"{count:.1f} s"


class Clock:
    """Counts from its making. `reserve`: seconds to keep for what comes after the last step."""

    def __init__(self, seconds: float, progress: Progress | None = None) -> None:
        self.seconds, self.reserve, self.started = seconds, 0.0, time.monotonic()
        self.progress = progress
        self.task: TaskID | None = None if progress is None else progress.add_task("tuning", total=seconds)

    @property
    def spent(self) -> float:
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        """Seconds for steps, by the clock of the process that is behind the others: all of them ask at once."""
        return self.seconds - self.reserve - together().most(self.spent)

    def show(self, text: str) -> None:
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, description=text, completed=min(self.spent, self.seconds))

    def step(self, name: str, share: float = 1.0) -> Callable[[int, int], None]:
        """What a step calls behind each of its parts: shows it, and raises OutOfTime once its pace tells of an end too late.

        `share`: of the time that is left, what it may take.
        """
        begun, left = self.spent, share * self.left

        def tell(done: int, total: int) -> None:
            self.show(f"{name} {done}/{total}")
            used = together().most(self.spent - begun)
            known = done >= SURE * total and used >= PATIENCE * left
            needed = used * total / max(done, 1) if known else used
            if needed > left and done < total:
                raise OutOfTime(needed, left)

        return tell


@contextmanager
def clock_for(seconds: float, progress: bool) -> Iterator[Clock]:
    """A clock, with a bar of the time while it runs."""
    if not progress:
        yield Clock(seconds)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("of {task.total:.0f} s at most")) as shown:
        yield Clock(seconds, shown)
