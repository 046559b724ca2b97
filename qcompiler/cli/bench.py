"""`qcompiler bench`: float, each back end and their scripts in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import qcompiler
from qcompiler.cli.commands import app, clean_errors, console, load
from qcompiler.cli.data import Preprocess, about_files, find_batches
from qcompiler.cli.models import load_model
from qcompiler.cli.options import IMAGES, Data, Json, Limit, Modules, Weights, takes_images


@app.command()
@clean_errors
@takes_images
def bench(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A MODEL as `quantize` takes it, or a file that `quantize` wrote.")],
    data: Data,
    weights: Weights = None,
    backend: Annotated[list[str] | None, typer.Option(help="Only this back end; repeatable. Default: torch and native.")] = None,
    batch: Annotated[int, typer.Option(help="Images per call.", min=1)] = 1,
    rounds: Annotated[int, typer.Option(help="Calls of each that count.", min=1)] = 50,
    threads: Annotated[int | None, typer.Option(help="Threads of torch. Default: those that it takes by itself.", min=1)] = None,
    scripted: Annotated[bool, typer.Option(help="Time the TorchScript of each as well.")] = True,
    limit: Limit = 32,
    preprocess: Preprocess = IMAGES,
    modules: Modules = None,
    json: Json = False,
) -> None:
    """Time SOURCE in float and int8, in turn, on the first batch of the data.

    `qcompiler bench torchvision:mobilenet_v2 --data photos/ --threads 1`
    """
    batches = find_batches(data, preprocess, batch, limit)
    model = load(Path(source), modules) if Path(source).exists() else load_model(source, weights)
    with about_files(batches.images, preprocess.size):
        found = qcompiler.bench(model, batches, backends=backend, scripted=scripted, rounds=rounds, threads=threads)
    if json:
        print(found.to_json())
        return
    if found.note:
        console.print(f"WARNING: {found.note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(found.table())
    for name, why in found.left_out.items():
        console.print(f"not timed: {name}: {why}", markup=False, highlight=False, soft_wrap=True)
