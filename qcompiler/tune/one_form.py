"""What a correction of a model with one form of the call works on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qcompiler.config.corrections import Corrections
from qcompiler.errors import CalibrationError, ConfigError
from qcompiler.inputs.batches import batches as as_batches
from qcompiler.inputs.batches import check_data
from qcompiler.tune.lane import Batch, without_empty
from qcompiler.tune.let_go import twins_for_now
from qcompiler.workflow.twins import Twin


@contextmanager
def one_form(prepared: object, batches: object, so_far: Corrections, refused: str) -> Iterator[tuple[Twin, list[Batch]]]:
    """The one form with these corrections, whose tensors go at the end of the `with`, and its batches. Raises ConfigError (`refused`) for
    several forms, CalibrationError for no batches."""
    check_data(batches)
    with twins_for_now(prepared, so_far) as made:
        data = list(without_empty(as_batches(batches)))
        if len(made) > 1:
            raise ConfigError(refused, code="call-forms", hint="prepare it with one form")
        if not data:
            raise CalibrationError("0 batches of data", code="no-batches", hint="an iterator can be read only once; is the loader empty?")
        yield made[0], data
