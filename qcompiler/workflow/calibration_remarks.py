"""What is remarked of the data that a module was calibrated with."""

from __future__ import annotations

from torch import fx

from qcompiler.compile.journal import Journal, Remark
from qcompiler.prepared.calibration import findings
from qcompiler.prepared.module import State


def calibration_remarks(prepared: fx.GraphModule, state: State) -> list[Remark]:
    """The remarks of a prepared module of one form. Of one that is trained, whose ranges are learned, numbers alone are told."""
    journal = Journal()
    for node, text in state.numbers.remarks(prepared):
        journal.remark("calibrate", "one-value", text, node)
    if state.settings.trains:
        return journal.remarks
    for code, text, about in findings(prepared, state.settings.table, state.example):
        journal.remark("calibrate", code, text, about)
    return journal.remarks
