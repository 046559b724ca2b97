"""What several commands take: options, each spelled once, and the options on images as one argument."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer

from qcompiler.cli.data import IMAGENET_MEAN, IMAGENET_STD, Preprocess

P = ParamSpec("P")
R = TypeVar("R")

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="`package.module:factory`, `file.py:factory` or `torchvision:NAME`: the float model.")
]
Weights = Annotated[str | None, typer.Option(help="A state_dict file; for torchvision also a weight name such as DEFAULT.")]
Modules = Annotated[
    list[str] | None,
    typer.Option("--module", help="`path=package.module:factory`: a float part of the model that the file refers to; repeatable."),
]
Calibrate = Annotated[Path, typer.Option(help="Folder of images, or of .npy / .pt files (one batch each), or one such file.")]
Data = Annotated[Path, typer.Option("--data", help="Folder of images, or of .npy / .pt files (one batch each), or one such file.")]
KeepFloat = Annotated[list[str] | None, typer.Option(help="Module path that stays float; repeatable.")]
Batch = Annotated[int, typer.Option(help="Images per batch.", min=1)]
Limit = Annotated[int, typer.Option(help="Use at most this many files.", min=1)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]

Size = Annotated[int, typer.Option(help="Height and width of the model's input, for images.", min=1)]
Mean = Annotated[str, typer.Option(help="Mean per channel of pixels in 0..1, for images. Default: ImageNet's.", show_default=False)]
Std = Annotated[str, typer.Option(help="Standard deviation per channel, for images. Default: ImageNet's.", show_default=False)]
IMAGES = Preprocess()
OPTIONS: dict[str, tuple[object, object]] = {
    "size": (Size, IMAGES.size), "mean": (Mean, ",".join(map(str, IMAGENET_MEAN))), "std": (Std, ",".join(map(str, IMAGENET_STD))),
}  # fmt: skip


def takes_images(command: Callable[P, R]) -> Callable[P, R]:
    """Gives a command the options --size, --mean and --std, of which it gets `preprocess`, in whose place they stand."""
    signature = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def run(*args: P.args, **given: P.kwargs) -> R:
        preprocess = Preprocess.of(*(given.pop(name) for name in OPTIONS))  # type: ignore[arg-type]
        return command(*args, **given, preprocess=preprocess)  # type: ignore[call-arg, arg-type]

    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        options = [inspect.Parameter(name, parameter.kind, default=default, annotation=kind) for name, (kind, default) in OPTIONS.items()]
        parameters += options if parameter.name == "preprocess" else [parameter]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run  # type: ignore[return-value]
