"""The command that searches for an accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import qcompiler
from qcompiler.cli.commands import app, check_output, clean_errors, console
from qcompiler.cli.data import Preprocess, about_files, find_batches
from qcompiler.cli.models import load_model
from qcompiler.cli.options import IMAGES, Batch, Data, KeepFloat, Model, Weights, takes_images
from qcompiler.cli.target import Backend, EngineOption, mapping_for, target_options
from qcompiler.errors import ConfigError
from qcompiler.tune import Tuned
from qcompiler.workflow.save import is_folder


@app.command()
@clean_errors
@takes_images
def tune(
    model: Model,
    data: Data,
    out: Annotated[str | None, typer.Option("--out", "-o", help="The file to write; with a slash at its end, a folder.")] = None,
    target: Annotated[str | None, typer.Option(help="What is enough, such as 25dB: the search ends there.")] = None,
    latency: Annotated[str | None, typer.Option(help="The most that a batch may take: ms, or 0.5x of the float model's time.")] = None,
    seconds: Annotated[float, typer.Option(help="The time for all of it.")] = 120.0,
    holdout: Annotated[float, typer.Option(help="Share of the batches that judge the steps.")] = 0.25,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    log: Annotated[Path | None, typer.Option(help="A file from which an interrupted search goes on.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for report.html and the page of what each step changed.")] = None,
    weights: Weights = None,
    backend: Backend = "torch",
    engine: EngineOption = None,
    keep_float: KeepFloat = None,
    preprocess: Preprocess = IMAGES,
    batch: Batch = 4,
    limit: Annotated[int, typer.Option(help="Use at most this many files.", min=2)] = 256,
) -> None:
    """Search for the most accurate int8 form of MODEL on sample data, without labels. Ctrl-C ends it with the best so far.

    `qcompiler tune torchvision:mobilenet_v2 --weights mobilenet_v2.pth --data photos/ --target 25dB --out mobilenet.qc`
    """
    if out is not None:
        check_output(out)
    if report is not None and report.is_file():
        raise ConfigError(f"cannot write into {report}: it is a file", code="output")
    batches, float_model = find_batches(data, preprocess, batch, limit), load_model(model, weights)
    chosen = target_options(backend, engine)
    with about_files(batches.images, preprocess.size):
        found = qcompiler.autotune(
            float_model, batches, target=target, latency=latency, seconds=seconds, holdout=holdout, seed=seed, log=log,
            progress=console.is_terminal, qconfig_mapping=mapping_for(chosen, keep_float), **chosen,
        )  # fmt: skip
    _give(found, out, report)
    if not found.reached:
        raise typer.Exit(2)


def _give(found: Tuned, out: str | None, report: Path | None) -> None:
    """Prints and writes a result."""
    console.print(found.rich())
    for note in found.notes():
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    if out is not None:
        qcompiler.save(found.model, out, measured=found.measured if is_folder(out) else None)
    if report is not None:
        console.print(str(found.save_report(report)), highlight=False)
