"""What a correction of a model with one form of the call works on."""

from __future__ import annotations

from qcompiler.config.corrections import Corrections
from qcompiler.errors import CalibrationError, ConfigError
from qcompiler.inputs.batches import batches as as_batches
from qcompiler.inputs.batches import check_data
from qcompiler.tune.lane import Batch, without_empty
from qcompiler.workflow.twins import Twin, twins


def one_form(prepared: object, batches: object, so_far: Corrections, refused: str) -> tuple[Twin, list[Batch]]:
    """The one form with these corrections, and its batches. ConfigError (`refused`) for several forms, CalibrationError for no batches."""
    check_data(batches)
    made, data = twins(prepared, so_far), list(without_empty(as_batches(batches)))
    if len(made) > 1:
        raise ConfigError(refused, code="call-forms", hint="prepare it with one form")
    if not data:
        raise CalibrationError("0 batches of data", code="no-batches", hint="an iterator can be read only once; is the loader empty?")
    return made[0], data
