"""calibrate: runs data through a prepared module, so that its observers see it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from qcompiler.ambient import in_plain_torch
from qcompiler.errors import CalibrationError, InputError
from qcompiler.executable.call_forms import forms_of
from qcompiler.inputs.batches import batches, check_data
from qcompiler.inputs.checks import MARK
from qcompiler.inputs.door import door
from qcompiler.inputs.fingerprint import number_of_call
from qcompiler.inputs.input_text import first_sentence, refuses_inputs
from qcompiler.ir.types import Stage
from qcompiler.observers.watch import Batch
from qcompiler.prepared.module import required_state
from qcompiler.stages.verify import verify
from qcompiler.workflow.ranks import Ranks, over_ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@in_plain_torch
@door
def calibrate(
    prepared: nn.Module, data: object, *, progress: bool = False, skip_nonfinite: bool = False,
    group: ProcessGroup | None = None, timeout: float = 1800.0
) -> int:  # fmt: skip
    """Runs calibration data through a prepared module, of prepare_fx or of quantization.prepare, and returns the number of batches.

    `data`: iterable of inputs (a tensor, a tuple of arguments, a dict of keywords), or a DataLoader of (inputs, labels), or one
    tensor (one batch). May be called again with more data. A batch that fails or is interrupted leaves no trace in the observers:
    an exception's note says how many batches they hold, and calibration can go on with the next. Raises CalibrationError for no
    batches and, naming the batch, for NaN or inf (`skip_nonfinite` skips such).
    `group`: of torch.distributed, whose processes call this together, each with its shard of the data. All end with the ranges of all
    data, equal to those of one process, and return the number of all batches. ConfigError for observers without an exact merge (moving
    averages) and models that keep state between calls; CalibrationError that names a rank that fails, or does not answer for `timeout`
    seconds, and then nothing of the call is held.
    """
    for form in forms_of(prepared):
        if isinstance(form, fx.GraphModule) or getattr(form, MARK, None) != "prepared":  # else quantization.prepare's
            verify(form, Stage.OBSERVED, table=required_state(form).settings.table)  # type: ignore[arg-type]
    check_data(data)

    def run() -> int:
        return _all(prepared, data, progress, skip_nonfinite)

    count = run() if group is None else over_ranks(prepared, Ranks(group, timeout), run)
    if count == 0:
        raise CalibrationError(
            "0 batches of calibration data", code="no-batches", hint="an iterator can be read only once; is the loader empty?"
        )
    return count


def _all(prepared: nn.Module, data: object, progress: bool, skip_nonfinite: bool) -> int:
    """Runs all batches; how many are held."""
    items = [data] if isinstance(data, torch.Tensor) else data
    batch = Batch(prepared)
    try:
        with _evaluating(prepared), batch:
            for index, (args, kwargs) in enumerate(_tracked(batches(items), progress, items)):
                _count(batch, prepared, index, (args, kwargs), skip_nonfinite)
    except BaseException as error:
        error.add_note(f"calibration stopped; the observers hold {batch.count} batches of this call, whole ones alone")
        raise
    return batch.count


@contextmanager
def _evaluating(prepared: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; what was in train mode is again, after. Tensors that training will use are no inference tensors."""
    training = [module for module in prepared.modules() if module.training]
    prepared.eval()
    try:
        with torch.no_grad() if training or required_state(forms_of(prepared)[0]).settings.trains else torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _count(batch: Batch, prepared: nn.Module, index: int, call: tuple[tuple[object, ...], dict[str, Any]], skip: bool) -> None:
    """One batch as a whole, or not at all where it is skipped."""
    batch.begin()
    try:
        _observe(prepared, index, *call)
        batch.keep(number_of_call(*call))
    except BaseException as error:
        batch.take_back()
        if not (skip and isinstance(error, CalibrationError)):
            raise


def _observe(prepared: nn.Module, index: int, args: tuple[object, ...], kwargs: dict[str, Any]) -> None:
    """One batch; errors name it."""
    try:
        prepared(*args, **kwargs)
    except (CalibrationError, InputError) as error:
        raise type(error)(f"batch {index}: {error.message}", code=error.code, where=error.where, hint=error.hint) from error
    except Exception as error:  # of a hand-prepared model: a graph's are InputErrors
        if not refuses_inputs(error):
            raise
        text = f"batch {index}: {type(error).__name__}: {first_sentence(error)}"
        hint = "does the float model take it? a tuple is the arguments of forward: without labels"
        raise InputError(text, code="input-shape", hint=hint) from error


def _tracked(items: Iterable[object], progress: bool, data: object) -> Iterable[Any]:
    if not progress:
        return items
    from rich.progress import track

    return track(items, description="calibrating", total=len(data) if hasattr(data, "__len__") else None)
