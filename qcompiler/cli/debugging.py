"""The commands that find a culprit: compare and bisect."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from qcompiler.cli.commands import app, clean_errors, console, load
from qcompiler.cli.data import Preprocess, about_files, find_batches
from qcompiler.cli.models import load_model
from qcompiler.cli.options import IMAGES, Batch, Data, Json, KeepFloat, Limit, Model, Modules, Weights, takes_images
from qcompiler.cli.target import Backend, EngineOption, mapping_for, target_options
from qcompiler.debug import bisect as find_first
from qcompiler.debug import compare as compare_models
from qcompiler.errors import ConfigError


@app.command()
@clean_errors
@takes_images
def compare(
    model: Model,
    quantized: Annotated[
        str, typer.Argument(metavar="QUANTIZED", help="A file that `quantize` wrote, or `package.module:factory` of a quantized model.")
    ],
    data: Data,
    weights: Weights = None,
    top: Annotated[int, typer.Option(help="Show this many of the worst nodes; 0 shows all.", min=0)] = 20,
    profile: Annotated[bool, typer.Option("--profile", help="Time each node as well.")] = False,
    modules: Modules = None,
    preprocess: Preprocess = IMAGES,
    batch: Batch = 8,
    limit: Limit = 32,
    json: Json = False,
) -> None:
    """Show where a quantized model departs from MODEL, the node with the worst error of its own first.

    own: the error that a node makes itself; inherited: what the nodes before it hand on. Both are the signal's decibels above
    that error: 40 is good for 8 bits, below 20 look closer.

    `qcompiler compare torchvision:mobilenet_v2 mobilenet.qc --weights mobilenet_v2.pth --data photos/`
    """
    batches = find_batches(data, preprocess, batch, limit)
    float_model, int8_model = load_model(model, weights), _quantized(quantized, modules)
    with about_files(batches.images, preprocess.size):
        found = compare_models(float_model, int8_model, batches, profile=profile)
    if json:
        print(found.to_json())
        return
    if found.note:
        console.print(f"WARNING: {found.note}", style="yellow", markup=False, highlight=False)
    console.print(found.table(top or None))
    for name, reason in found.unmatched:
        console.print(f"not compared: {name}: {reason}", markup=False, highlight=False, soft_wrap=True)


@app.command()
@clean_errors
@takes_images
def bisect(
    model: Model,
    data: Data,
    weights: Weights = None,
    tol_db: Annotated[float, typer.Option(help="The result must be this many decibels above its error once it computes in int8.")] = 20.0,
    float_tol_db: Annotated[float, typer.Option(help="The same for the stages before, which compute in float.")] = 60.0,
    backend: Backend = "torch",
    engine: EngineOption = None,
    keep_float: KeepFloat = None,
    preprocess: Preprocess = IMAGES,
    batch: Batch = 8,
    limit: Limit = 16,
    json: Json = False,
) -> None:
    """Compile MODEL pass by pass and name the first pass, match and node after which the result is over tolerance.

    `qcompiler bisect my_package.model:build --data batches/ --tol-db 30`
    """
    batches = find_batches(data, preprocess, batch, limit)
    target = target_options(backend, engine)
    mapping = mapping_for(target, keep_float)
    float_model = load_model(model, weights)
    with about_files(batches.images, preprocess.size):
        found = find_first(float_model, batches, tol_db=tol_db, float_tol_db=float_tol_db, qconfig_mapping=mapping, **target)
    print(found.to_json()) if json else console.print(str(found), markup=False, highlight=False, soft_wrap=True)


def _quantized(reference: str, modules: list[str] | None) -> nn.Module:
    if os.path.exists(reference) or ":" not in reference:
        return load(Path(reference), modules)
    if modules:
        raise ConfigError("--module belongs to a saved file", code="module-option")
    return load_model(reference)
