"""The commands. Each reads its arguments, calls the public API and prints; nothing here decides how to quantize."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import numpy as np
import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

import qcompiler
from qcompiler.artifact.foreign import check_name
from qcompiler.cli.calls import call, tensors
from qcompiler.cli.data import Preprocess, about_files, is_image, read_input
from qcompiler.cli.models import load_model
from qcompiler.cli.options import IMAGES, Modules, takes_images
from qcompiler.errors import ConfigError, InputError, QCompilerError
from qcompiler.timing import in_turn

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    name="qcompiler",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Compiles a trained float PyTorch model to an int8 program for ordinary CPUs.\n\n"
    "A first round:\n\n"
    "1. `qcompiler quantize torchvision:resnet18 --calibrate photos/ --out resnet18.qc`\n\n"
    "2. `qcompiler inspect resnet18.qc`: what became int8, what stayed float, and why\n\n"
    "3. `qcompiler run resnet18.qc photo.jpg`\n\n"
    "Set `QCOMPILER_DEBUG=folder` to get every stage of the compilation as text, Python and diff.",
)
console = Console()
stderr = Console(stderr=True)

RUNS = 9  # of `run`, for its time


def clean_errors(command: Callable[P, R]) -> Callable[P, R]:
    """An error that was raised on purpose is a message and exit code 1, not a traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except QCompilerError as error:
            stderr.print(f"[bold red]error[/] [dim]({escape(error.code)})[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            raise typer.Exit(1) from None

    return run


def note_random_weights(model: str, weights: str | None) -> None:
    if model.startswith("torchvision:") and weights is None:
        stderr.print("note: without --weights a torchvision model has random weights; its answers mean nothing", style="yellow")


@app.command("export-c")
@clean_errors
def export_c(
    file: Annotated[Path, typer.Argument(help="A file or folder that `quantize` wrote.")],
    folder: Annotated[Path, typer.Argument(help="The folder to write: empty, or not there yet.")],
    shape: Annotated[
        list[str] | None, typer.Option("--shape", help="An input size: 1x3x224x224; repeatable. Default: the example's.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What C calls the network.")] = None,
) -> None:
    """Write FILE as C11 sources, weights, header, example program and CMake file.

    `qcompiler export-c mobilenet.qc mobilenet_c/ --shape 1x3x224x224`
    """
    sizes = [_shape(text) for text in shape] if shape else None
    written = qcompiler.export_c(load(file, None), folder, sizes, name)
    console.print(f"{written}: README.md says how to build it", highlight=False)


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(n) for n in text.split("x"))
    except ValueError:
        raise ConfigError(f"--shape {text} is no size such as 1x3x224x224", code="export-sizes") from None


@app.command()
@clean_errors
@takes_images
def run(
    file: Annotated[Path, typer.Argument(help="A file or folder that `quantize` wrote.")],
    input_file: Annotated[Path, typer.Argument(metavar="INPUT", help="An image, .npy or .pt file.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the output as .npy or .pt.")] = None,
    top: Annotated[int, typer.Option(help="Show this many of the highest scores.", min=1)] = 5,
    labels: Annotated[Path | None, typer.Option(help="Text file with one class name a line.")] = None,
    preprocess: Preprocess = IMAGES,
    modules: Modules = None,
) -> None:
    """Run FILE on INPUT and show the highest scores; --out keeps the whole output.

    `qcompiler run resnet18.qc cat.jpg --labels imagenet.txt`
    """
    if out is not None:
        check_writable(out)
    names = _read_labels(labels)
    value = read_input(input_file, preprocess)
    converted = load(file, modules)
    with torch.inference_mode(), about_files(is_image(input_file), preprocess.size):
        output = call(converted, value)
        timed = in_turn({"": lambda: call(converted, value)}, RUNS, warmup=1)[""]
    for path, tensor in tensors(output):
        console.print(f"{path or 'output'}: {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}", highlight=False)
        if tensor.dim() == 2 and tensor.shape[1] > 1:
            console.print(_scores(tensor[0], min(top, tensor.shape[1]), names))
    wall = timed.wall
    console.print(f"[dim]{wall.median:.1f} ms, median of {RUNS} warm runs ({wall.p5:.1f} to {wall.p95:.1f}); "
                  f"{timed.processor.median:.1f} ms of processor time, threads: {torch.get_num_threads()}[/]", highlight=False)  # fmt: skip
    if out is not None:
        _write_output(output, out)


def load(file: Path, modules: list[str] | None) -> nn.Module:
    pairs = [entry.partition("=") for entry in modules or ()]
    if bad := [path for path, sign, _ in pairs if not sign]:
        raise ConfigError(f"cannot read --module {bad[0]}", code="module-option", hint="--module path=package.module:factory")
    return qcompiler.load(str(file), modules={path: load_model(reference) for path, _, reference in pairs} or None)


def check_output(out: str) -> None:
    """`check_writable` for what `save` writes, a folder where the name ends in a slash. ConfigError for a name of another format."""
    if not out.endswith(("/", os.sep)):
        check_writable(Path(out))
        check_name(out)
    elif Path(out).exists() and not Path(out).is_dir():
        raise ConfigError(f"cannot write {out}: there is a file of this name", code="output")


def check_writable(out: Path) -> None:
    """Raises ConfigError before the work for a file that cannot be written after it."""
    reason = "is a folder" if out.is_dir() else "is in no folder that exists" if not out.absolute().parent.is_dir() else ""
    if reason:
        raise ConfigError(f"cannot write {out}: it {reason}", code="output")


def _write_output(output: Any, out: Path) -> None:
    try:
        if out.suffix != ".npy":
            torch.save(output, out)
        elif isinstance(output, torch.Tensor):
            np.save(out, output.numpy())
        else:
            raise InputError("the output is not one tensor", code="output", hint="--out FILE.pt keeps any structure")
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror or error}", code="output") from error


def _read_labels(path: Path | None) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines() if path else []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}", code="labels") from error


def _scores(row: torch.Tensor, top: int, names: list[str]) -> Table:
    table = Table("class", "name", "score") if names else Table("class", "score")
    values, indices = row.float().topk(top)
    for value, index in zip(values.tolist(), indices.tolist(), strict=True):
        name = [names[index] if index < len(names) else "?"] if names else []
        table.add_row(str(index), *map(escape, name), f"{value:.3f}")
    return table


def facts(title: str) -> Table:
    table = Table(title=escape(title), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def tensor_bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        console.print(installed("qcompiler"), highlight=False)
        raise typer.Exit


def main() -> None:
    """The entry point of the `qcompiler` command."""
    app()
