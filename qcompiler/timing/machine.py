"""The machine while something is timed: which CPU it is, and how much of it other processes took."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

STAT, CPUINFO = Path("/proc/stat"), Path("/proc/cpuinfo")
IDLE = (3, 4)  # columns of a cpu line of /proc/stat: idle, iowait
BUSY = 0.25  # of one core: from there on other processes are told of


class Machine:
    """Watches from its making on."""

    def __init__(self) -> None:
        self.start, self.own, self.all = time.perf_counter(), time.process_time(), _worked()

    def others(self) -> float | None:
        """How many cores other processes kept busy on average; None where the system does not tell."""
        now, seconds = _worked(), time.perf_counter() - self.start
        if now is None or self.all is None or seconds <= 0:
            return None
        return max(0.0, (now - self.all - (time.process_time() - self.own)) / seconds)

    def share(self, seconds: float) -> float:
        """Of all cores, how much other processes kept busy; 0 where the system does not tell, or has not watched for so many seconds."""
        others = self.others() if time.perf_counter() - self.start >= seconds else None
        return 0.0 if others is None else others / (os.cpu_count() or 1)

    def note(self) -> str:
        """A warning where others were at work; empty where nothing is known against the times."""
        return busy_note(self.others(), os.cpu_count() or 1)


def busy_note(others: float | None, cores: int) -> str:
    """`others`: as Machine.others gives it. Without a free core for them, wall times are those of waiting as well."""
    if others is None or others < BUSY:
        return ""
    return f"the machine is busy: other processes kept {others:.1f} of its {cores} cores at work, so take processor times and ratios"


def _worked() -> float | None:
    """Seconds that all cores have worked since the machine began; in a container those of the machine."""
    try:
        columns = [int(text) for text in STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
        return (sum(columns) - sum(columns[i] for i in IDLE)) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def cpu_name() -> str:
    """As the CPU calls itself, where the system tells."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Processor"))]
    return next(filter(None, named), "") or platform.processor() or platform.machine()
