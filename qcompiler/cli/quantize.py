"""`qcompiler quantize`: a float model and data in, a file out, and what became of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from torch import nn

import qcompiler
from qcompiler.artifact.read import file_of
from qcompiler.cli.commands import (
    app,
    check_output,
    clean_errors,
    console,
    facts,
    megabytes,
    note_random_weights,
    tensor_bytes,
)
from qcompiler.cli.data import Batches, Preprocess, about_files, find_batches, held_out
from qcompiler.cli.judge import nearness, speed
from qcompiler.cli.models import load_model
from qcompiler.cli.options import IMAGES, Batch, Calibrate, KeepFloat, Limit, Model, Weights, takes_images
from qcompiler.cli.target import Backend, EngineOption, mapping_for, target_options
from qcompiler.executable import Executable
from qcompiler.workflow.save import is_folder

Evaluate = Annotated[
    Path | None, typer.Option(help="Data to judge by. Default: every fifth of ten or more files, which then do not calibrate.")
]


NOT_JUDGED = [("not judged", "fewer than 10 files: --evaluate FOLDER gives data that it was not calibrated on")]


@app.command()
@clean_errors
@takes_images
def quantize(
    model: Model,
    calibrate: Calibrate,
    out: Annotated[str, typer.Option("--out", "-o", help="The file to write; with a slash at its end, a folder as model hubs show it.")],
    weights: Weights = None,
    backend: Backend = "torch",
    engine: EngineOption = None,
    isa: Annotated[str | None, typer.Option(help="The oldest CPU that will run it: avx512_vnni, avx512, avx2. Default: this one.")] = None,
    keep_float: KeepFloat = None,
    evaluate: Evaluate = None,
    preprocess: Preprocess = IMAGES,
    batch: Batch = 8,
    limit: Limit = 256,
    source: Annotated[Path | None, typer.Option(help="Also write the program as Python with its weights into this folder.")] = None,
) -> None:
    """Quantize MODEL on sample data and write the result to a file.

    Calibration runs the float model on typical inputs to learn the range of every value: a hundred or two will do, of the
    kind that the model will meet. No labels are needed.

    `qcompiler quantize torchvision:mobilenet_v2 --weights mobilenet_v2.pth --calibrate photos/ --out mobilenet.qc`

    `qcompiler quantize my_package.model:build --calibrate batches/ --out model.qc --keep-float head`
    """
    check_output(out)
    data, others = _split(calibrate, evaluate, lambda path: find_batches(path, preprocess, batch, limit))
    float_model = load_model(model, weights)
    note_random_weights(model, weights)
    start, target = time.perf_counter(), target_options(backend, engine, isa)
    with about_files(data.images, preprocess.size):
        converted = qcompiler.quantize(float_model, data, mapping_for(target, keep_float), progress=console.is_terminal, **target)
    seconds = time.perf_counter() - start
    near = _nearness(float_model, converted, others)
    written = _write(converted, out, source, near)
    done = ("calibrated on", f"{_files(data)} of {calibrate}, in {seconds:.1f} s")
    judged = [*(near or NOT_JUDGED), *speed(float_model, converted, next(iter(others or data)))]
    rows = [done, *_kinds(converted), *judged, _size(float_model, out), *written]
    _print(model, rows, out)


def _split(calibrate: Path, evaluate: Path | None, find: Callable[[Path], Batches]) -> tuple[Batches, Batches | None]:
    """What to calibrate on, and what to judge by: data of its own, else what is held back."""
    found = find(calibrate)
    return (found, find(evaluate)) if evaluate is not None else held_out(found)


def _write(converted: Executable, out: str, source: Path | None, near: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The rows on what was written beside the file; a folder's card has the figures."""
    qcompiler.save(converted, out, measured=dict(near) if is_folder(out) else None)
    if source is None:
        return []
    qcompiler.export_source(converted, str(source))
    return [(f"{source}", "Python source and weights")]


def _print(model: str, rows: Iterable[tuple[str, str]], out: str) -> None:
    table = facts(model)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(f"[dim]Next: qcompiler inspect {escape(out)}[/]", highlight=False)


def _kinds(converted: nn.Module) -> list[tuple[str, str]]:
    explanation = qcompiler.explain(converted)
    work = [("multiply-accumulates", explanation.work)] if explanation.work else []
    return [("runs in int8", explanation.verdict), *work]


def _size(model: nn.Module, out: str) -> tuple[str, str]:
    before, after = tensor_bytes(model), os.stat(file_of(out)).st_size
    return "size", f"1/{before / after:.1f} of float: {megabytes(after)} instead of {megabytes(before)}"


def _files(data: Batches) -> str:
    return f"{len(data.files)} file{'s' * (len(data.files) != 1)}"


def _nearness(model: nn.Module, converted: nn.Module, others: Batches | None) -> list[tuple[str, str]]:
    """How near it is to float on data that it was not calibrated on; nothing where there is none."""
    if others is None:
        return []
    where = f"on {_files(others)} that it was not calibrated on"
    return [(name, f"{value} {where}") for name, value in nearness(model, converted, others)]
