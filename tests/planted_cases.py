"""Cases that fail in each way that a child process can, for the test of tests/children.py."""

from __future__ import annotations

import atexit
import os
import signal
import sys

from tests import children


def case(number: int) -> str:
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 5:
        raise ValueError("five")
    if number == 7:
        sys.exit("seven")
    if number == 8:
        atexit.register(os.kill, os.getpid(), signal.SIGABRT)
    return "even" if number % 2 == 0 else "odd"


if __name__ == "__main__":
    children.work(int(sys.argv[-2]), int(sys.argv[-1]), case, 10.0)
