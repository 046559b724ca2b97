"""Bisecting by count: optional rewrites are numbered, and those above a limit do not run.

    prepare_fx(..., debug=Gate(limit=12))             # or `with gated(Gate(limit=12)):`, or QCOMPILER_BISECT=12
    gate.total, gate.seen                             # how many rewrites were offered, and which

Numbers run from 1 through prepare_fx and on through its convert_fx. What the program needs to be right is no optional rewrite
and always runs. Nothing is kept but in the environment variable and the gate.
"""

from __future__ import annotations

import sys

from qcompiler.compile.gate import Gate, gated
from qcompiler.compile.pass_manager import Context

__all__ = ["Gate", "gated", "print_answer", "resumed"]


def print_answer(number: int, description: str, allowed: bool) -> None:
    """The line that QCOMPILER_BISECT prints for each rewrite."""
    print(f"BISECT: {'running' if allowed else 'NOT running'} ({number}) {description}", file=sys.stderr)


def resumed(limit: int, context: Context) -> Gate:
    """A printing gate that counts on from where the context stands; a limit of -1 lets everything run."""
    return Gate(None if limit < 0 else limit, print_answer, list(context.journal.rewrites))
