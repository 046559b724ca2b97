"""`qcompiler export-onnx`, `qcompiler export-program`: a model and sample data in, an ONNX file or a program of torch.export out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import fx, nn

import qcompiler
from qcompiler.cli.commands import (
    MEAN,
    STD,
    Mean,
    Size,
    Std,
    app,
    check_writable,
    clean_errors,
    console,
    megabytes,
    note_random_weights,
    tensor_bytes,
)
from qcompiler.cli.data import Batches, Preprocess, about_files, find_batches
from qcompiler.cli.models import load_model
from qcompiler.cli.target import TargetOptions, mapping_for, target_options
from qcompiler.errors import ConfigError
from qcompiler.files.atomic import atomic_write
from qcompiler.workflow.first_batch import first_batch

Model = Annotated[str, typer.Argument(metavar="MODEL", help="`package.module:factory`, `file.py:factory` or `torchvision:NAME`.")]
Calibrate = Annotated[Path, typer.Option(help="Folder of images, or of .npy / .pt files (one batch each), or one such file.")]
Weights = Annotated[str | None, typer.Option(help="A state_dict file; for torchvision also a weight name such as DEFAULT.")]
Fixed = Annotated[bool, typer.Option("--fixed", help="Inputs have the sizes of the first batch, and no other.")]
KeepFloat = Annotated[list[str] | None, typer.Option(help="Module path that stays float; repeatable.")]
Batch = Annotated[int, typer.Option(help="Images per calibration batch.", min=1)]
Limit = Annotated[int, typer.Option(help="Use at most this many files.", min=1)]


@app.command("export-onnx")
@clean_errors
def export_onnx(
    model: Model,
    calibrate: Calibrate,
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file to write.")],
    weights: Weights = None,
    isa: Annotated[str | None, typer.Option(help="The oldest x86 CPU that will run it: avx2 (default) or avx512_vnni.")] = None,
    opset: Annotated[int | None, typer.Option(help="Of the file, 18 to 23. Default: 18.")] = None,
    fixed: Fixed = False,
    keep_float: KeepFloat = None,
    size: Size = 224,
    mean: Mean = MEAN,
    std: Std = STD,
    batch: Batch = 8,
    limit: Limit = 256,
) -> None:
    """Quantize MODEL on sample data and write an ONNX file that ONNX Runtime and OpenVINO run in int8.

    `qcompiler export-onnx torchvision:mobilenet_v2 --weights mobilenet_v2.pth --calibrate photos/ --out mobilenet.onnx`
    """
    check_writable(out)
    data = find_batches(calibrate, Preprocess.of(size, mean, std), batch, limit)
    float_model, prepared = _calibrated(model, weights, data, size, keep_float, target_options("onnx", None, isa))
    qcompiler.export_onnx(prepared, out, opset=opset, dynamic_shapes={} if fixed else None)
    _tell(out, float_model)


@app.command("export-program")
@clean_errors
def export_program(
    model: Model,
    calibrate: Calibrate,
    out: Annotated[Path, typer.Option("--out", "-o", help="The .pt2 file to write.")],
    weights: Weights = None,
    fixed: Fixed = False,
    keep_float: KeepFloat = None,
    size: Size = 224,
    mean: Mean = MEAN,
    std: Std = STD,
    batch: Batch = 8,
    limit: Limit = 256,
) -> None:
    """Quantize MODEL on sample data and write a program that torch.export.load reads, in plain ops of torch.

    `qcompiler export-program torchvision:mobilenet_v2 --weights mobilenet_v2.pth --calibrate photos/ --out mobilenet.pt2`
    """
    check_writable(out)
    if out.suffix != ".pt2":
        raise ConfigError(f"torch.export reads files that end in .pt2 alone, not {out.name:.80}", code="out-suffix",
                          hint=f"--out {out.with_suffix('.pt2')}")  # fmt: skip
    data = find_batches(calibrate, Preprocess.of(size, mean, std), batch, limit)
    float_model, prepared = _calibrated(model, weights, data, size, keep_float, target_options("reference", None, None))
    torch.export.save(qcompiler.export_program(prepared, dynamic_shapes={} if fixed else None), file := io.BytesIO())
    atomic_write(out, [file.getbuffer()])
    _tell(out, float_model)


def _calibrated(
    model: str, weights: str | None, data: Batches, size: int, keep_float: list[str] | None, target: TargetOptions
) -> tuple[nn.Module, fx.GraphModule]:
    """The float model, and the same prepared and calibrated for a target."""
    float_model = load_model(model, weights)
    note_random_weights(model, weights)
    with about_files(data.images, size):
        first, inputs, kwargs = first_batch(data)
        prepared = qcompiler.prepare_fx(float_model, mapping_for(target, keep_float), inputs, example_kwargs=kwargs or None, **target)
        qcompiler.calibrate(prepared, first, progress=console.is_terminal)
    return float_model, prepared


def _tell(out: Path, float_model: nn.Module) -> None:
    console.print(f"{out}: {megabytes(out.stat().st_size)}, float weights {megabytes(tensor_bytes(float_model))}", highlight=False)
