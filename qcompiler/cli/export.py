"""`qcompiler export-onnx`, `qcompiler export-program`: a saved file, or a model and sample data, in; a file for other runtimes out."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

import qcompiler
from qcompiler.cli.commands import app, check_writable, clean_errors, console, load, megabytes, note_random_weights, tensor_bytes
from qcompiler.cli.data import Preprocess, about_files, find_batches
from qcompiler.cli.models import load_model
from qcompiler.cli.options import IMAGES, Batch, KeepFloat, Limit, Modules, Weights, takes_images
from qcompiler.cli.target import TargetOptions, mapping_for, target_options
from qcompiler.errors import ConfigError
from qcompiler.files.atomic import atomic_write
from qcompiler.workflow.first_batch import first_batch

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="A MODEL as `quantize` takes it, or a file that `quantize` wrote.")]
Calibrate = Annotated[
    Path | None, typer.Option(help="For a MODEL: folder of images, or of .npy / .pt files (one batch each), or one such file.")
]
Fixed = Annotated[bool, typer.Option("--fixed", help="Inputs have the sizes of the first batch, and no other.")]


@app.command("export-onnx")
@clean_errors
@takes_images
def export_onnx(
    source: Source,
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file to write.")],
    calibrate: Calibrate = None,
    weights: Weights = None,
    isa: Annotated[str | None, typer.Option(help="The oldest x86 CPU that will run it: avx2 (default) or avx512_vnni.")] = None,
    opset: Annotated[int | None, typer.Option(help="Of the file, 18 to 23. Default: 18.")] = None,
    fixed: Fixed = False,
    keep_float: KeepFloat = None,
    preprocess: Preprocess = IMAGES,
    batch: Batch = 8,
    limit: Limit = 256,
    modules: Modules = None,
) -> None:
    """Write SOURCE as an ONNX file that ONNX Runtime and OpenVINO run in int8. A MODEL is quantized on sample data first.

    `qcompiler export-onnx torchvision:mobilenet_v2 --weights mobilenet_v2.pth --calibrate photos/ --out mobilenet.onnx`

    `qcompiler export-onnx mobilenet.qc --out mobilenet.onnx`
    """
    check_writable(out)
    made = _made(source, calibrate, modules, {"--weights": weights, "--isa": isa, "--keep-float": keep_float})
    if made is None:
        assert calibrate is not None
        target = target_options("onnx", None, isa)
        made = _calibrated(source, weights, (calibrate, preprocess, batch, limit), keep_float, target)
    qcompiler.export_onnx(made, out, opset=opset, dynamic_shapes={} if fixed else None)
    _tell(out)


@app.command("export-program")
@clean_errors
@takes_images
def export_program(
    source: Source,
    out: Annotated[Path, typer.Option("--out", "-o", help="The .pt2 file to write.")],
    calibrate: Calibrate = None,
    weights: Weights = None,
    fixed: Fixed = False,
    keep_float: KeepFloat = None,
    preprocess: Preprocess = IMAGES,
    batch: Batch = 8,
    limit: Limit = 256,
    modules: Modules = None,
) -> None:
    """Write SOURCE as a program that torch.export.load reads, in plain ops of torch. A MODEL is quantized on sample data first.

    `qcompiler export-program torchvision:mobilenet_v2 --weights mobilenet_v2.pth --calibrate photos/ --out mobilenet.pt2`

    `qcompiler export-program mobilenet.qc --out mobilenet.pt2`
    """
    check_writable(out)
    if out.suffix != ".pt2":
        raise ConfigError(f"torch.export reads files that end in .pt2 alone, not {out.name:.80}", code="out-suffix",
                          hint=f"--out {out.with_suffix('.pt2')}")  # fmt: skip
    made = _made(source, calibrate, modules, {"--weights": weights, "--keep-float": keep_float})
    if made is None:
        assert calibrate is not None
        target = target_options("reference", None, None)
        made = _calibrated(source, weights, (calibrate, preprocess, batch, limit), keep_float, target)
    torch.export.save(qcompiler.export_program(made, dynamic_shapes={} if fixed else None), file := io.BytesIO())
    atomic_write(out, [file.getbuffer()])
    _tell(out)


def _made(source: str, calibrate: Path | None, modules: list[str] | None, for_models: dict[str, object]) -> nn.Module | None:
    """The module of a saved file; None for a model that is still to be quantized. ConfigError for options of the other kind."""
    if os.path.exists(source) or ":" not in source:
        given = [name for name, value in {"--calibrate": calibrate, **for_models}.items() if value]
        if given:
            raise ConfigError(f"{source} is a file that was quantized already: it takes no {', '.join(given)}", code="export-options",
                              hint="leave them out, or give the model itself")  # fmt: skip
        return load(Path(source), modules)
    if modules or calibrate is None:
        what = "--module belongs to a saved file" if modules else f"{source} is a model: --calibrate names the data to quantize it on"
        raise ConfigError(what, code="export-options")
    return None


def _calibrated(model: str, weights: str | None, data: tuple[Path, Preprocess, int, int], keep_float: list[str] | None,
                target: TargetOptions) -> nn.Module:  # fmt: skip
    """The model, prepared and calibrated for a target on `data`: the arguments of find_batches."""
    batches = find_batches(*data)
    float_model = load_model(model, weights)
    note_random_weights(model, weights)
    with about_files(batches.images, data[1].size):
        first, inputs, kwargs = first_batch(batches)
        prepared = qcompiler.prepare_fx(float_model, mapping_for(target, keep_float), inputs, example_kwargs=kwargs or None, **target)
        qcompiler.calibrate(prepared, first, progress=console.is_terminal)
    console.print(f"float weights: {megabytes(tensor_bytes(float_model))}", highlight=False)
    return prepared


def _tell(out: Path) -> None:
    console.print(f"{out}: {megabytes(out.stat().st_size)}", highlight=False)
