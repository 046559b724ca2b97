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
    MEAN,
    STD,
    Mean,
    Size,
    Std,
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
from qcompiler.cli.target import Backend, EngineOption, mapping_for, target_options
from qcompiler.executable import Executable

Evaluate = Annotated[
    Path | None, typer.Option(help="Data to judge by. Default: every fifth of ten or more files, which then do not calibrate.")
]


@app.command()
@clean_errors
def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="`package.module:factory`, `file.py:factory` or `torchvision:NAME`.")],
    calibrate: Annotated[Path, typer.Option(help="Folder of images, or of .npy / .pt files (one batch each), or one such file.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The file to write; with a slash at its end, a folder as model hubs show it.")],
    weights: Annotated[str | None, typer.Option(help="A state_dict file; for torchvision also a weight name such as DEFAULT.")] = None,
    backend: Backend = "torch",
    engine: EngineOption = None,
    isa: Annotated[str | None, typer.Option(help="The oldest CPU that will run it: avx512_vnni, avx512, avx2. Default: this one.")] = None,
    keep_float: Annotated[list[str] | None, typer.Option(help="Module path that stays float; repeatable.")] = None,
    evaluate: Evaluate = None,
    size: Size = 224,
    mean: Mean = MEAN,
    std: Std = STD,
    batch: Annotated[int, typer.Option(help="Images per calibration batch.", min=1)] = 8,
    limit: Annotated[int, typer.Option(help="Use at most this many files.", min=1)] = 256,
    source: Annotated[Path | None, typer.Option(help="Also write the program as Python with its weights into this folder.")] = None,
) -> None:
    """Quantize MODEL on sample data and write the result to a file.

    Calibration runs the float model on typical inputs to learn the range of every value: a hundred or two will do, of the
    kind that the model will meet. No labels are needed.

    `qcompiler quantize torchvision:mobilenet_v2 --weights mobilenet_v2.pth --calibrate photos/ --out mobilenet.qc`

    `qcompiler quantize my_package.model:build --calibrate batches/ --out model.qc --keep-float head`
    """
    check_output(out)
    data, others = _split(calibrate, evaluate, lambda path: find_batches(path, Preprocess.of(size, mean, std), batch, limit))
    float_model = load_model(model, weights)
    note_random_weights(model, weights)
    start, target = time.perf_counter(), target_options(backend, engine, isa)
    with about_files(data.images, size):
        converted = qcompiler.quantize(float_model, data, mapping_for(target, keep_float), progress=console.is_terminal, **target)
    seconds = time.perf_counter() - start
    written = _write(converted, out, source)
    done = ("calibrated on", f"{_files(data)} of {calibrate}, in {seconds:.1f} s")
    rows = [done, *_kinds(converted), *_judged(float_model, converted, others, data), _size(float_model, out), *written]
    _print(model, rows, out)


def _split(calibrate: Path, evaluate: Path | None, find: Callable[[Path], Batches]) -> tuple[Batches, Batches | None]:
    """What to calibrate on, and what to judge by: data of its own, else what is held back."""
    found = find(calibrate)
    return (found, find(evaluate)) if evaluate is not None else held_out(found)


def _write(converted: Executable, out: str, source: Path | None) -> list[tuple[str, str]]:
    """The rows on what was written beside the file."""
    qcompiler.save(converted, out)
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
    return "size", f"1/{before / after:.1f} of float: {megabytes(after)} for {megabytes(before)}"


def _files(data: Batches) -> str:
    return f"{len(data.files)} file{'s' * (len(data.files) != 1)}"


def _judged(model: nn.Module, converted: nn.Module, others: Batches | None, data: Batches) -> list[tuple[str, str]]:
    """How near it is to float on other data, and how fast it is."""
    if others is None:
        rows = [("not judged", "fewer than 10 files: --evaluate FOLDER gives data that it was not calibrated on")]
    else:
        where = f"on {_files(others)} that it was not calibrated on"
        rows = [(name, f"{value} {where}") for name, value in nearness(model, converted, others)]
    return rows + speed(model, converted, next(iter(others or data)))
