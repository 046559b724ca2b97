"""`qcompiler viz`: a graph as a page, a drawing, text for other tools, or a table in the terminal."""

from __future__ import annotations

import json
import webbrowser
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape

import qcompiler
import qcompiler.viz
from qcompiler.artifact.read import file_of
from qcompiler.cli.commands import app, clean_errors, console, load, stderr
from qcompiler.cli.data import Preprocess, about_files, is_image, read_input
from qcompiler.cli.models import load_model
from qcompiler.cli.options import IMAGES, Modules, takes_images
from qcompiler.debug.document import Document
from qcompiler.debug.record import Recorder
from qcompiler.debug.sources import document_of
from qcompiler.errors import ConfigError


class Format(StrEnum):
    html = "html"
    svg = "svg"
    dot = "dot"
    mmd = "mmd"
    json = "json"
    me_json = "me.json"


@app.command()
@clean_errors
@takes_images
def viz(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A saved file or folder, dumps, or a MODEL as `quantize` takes it.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file to write; without it a table is printed.")] = None,
    kind: Annotated[Format | None, typer.Option("--format", help="Default: what the file's name ends in.")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the file in the browser.")] = False,
    title: Annotated[str | None, typer.Option(help="Default: the model's name.")] = None,
    depth: Annotated[int | None, typer.Option(help="Module levels to show. Default: as many as there is room for.", min=1)] = None,
    numerics: Annotated[Path | None, typer.Option(help="JSON file of measures by node name.")] = None,
    overlay: Annotated[list[Path] | None, typer.Option(help="JSON file of {node: number} to colour by; repeatable.")] = None,
    example: Annotated[Path | None, typer.Option(help="For a MODEL: image, .npy or .pt file to calibrate and convert with.")] = None,
    preprocess: Preprocess = IMAGES,
    modules: Modules = None,
) -> None:
    """Draw what SOURCE holds.

    The ending of the file is the format: .html (interactive), .svg, .dot, .mmd (Mermaid), .json, .me.json (Model Explorer).

    `qcompiler viz resnet18.qc -o resnet18.html --open`

    `qcompiler viz dumps -o passes.html` takes the last model in the folder, prepare and convert

    `qcompiler viz torchvision:resnet18` shows what would become int8, as a table.
    """
    document = _document(source, preprocess, example, modules)
    measures = _read_json(numerics) if numerics else None
    if out is None:
        qcompiler.viz.print(document, depth or 2, numerics=measures, file=console.file, width=console.width)
        return
    path = out if kind is None or out.name.endswith(f".{kind}") else out.with_name(f"{out.name}.{kind}")
    overlays = {file.name.removesuffix(".json"): _read_json(file) for file in overlay or ()}
    written = qcompiler.viz.save(document, path, numerics=measures, overlays=overlays, title=title, depth=depth)
    for file in written:
        console.print(f"{escape(str(file))}: {file.stat().st_size / 1e3:.0f} kB", highlight=False)
    if show:
        webbrowser.open(written[0].resolve().as_uri())


def _document(source: str, preprocess: Preprocess, example: Path | None, modules: list[str] | None) -> Document:
    path = Path(source)
    saved = Path(file_of(path))
    if saved.is_dir() or path.suffix == ".json":
        return document_of(path)
    if saved.is_file():
        return document_of(load(path, modules))
    if ":" not in source:
        hint = "SOURCE is a saved file or folder, a dump folder, package.module:factory, file.py:factory or torchvision:NAME"
        raise ConfigError(f"there is no file {source}", code="no-graph", hint=hint)
    return _of_model(source, preprocess, example)


def _of_model(reference: str, preprocess: Preprocess, example: Path | None) -> Document:
    """The passes of a float model: to the observers, and with an example to the int8 program."""
    recorder, model = Recorder(), load_model(reference)
    value = read_input(example, preprocess) if example else torch.zeros(1, 3, preprocess.size, preprocess.size)
    args, kwargs = ((), value) if isinstance(value, dict) else (value if isinstance(value, (tuple, list)) else (value,), {})
    with about_files(example is None or is_image(example), preprocess.size):
        prepared = qcompiler.prepare_fx(model, None, tuple(args), example_kwargs=kwargs, debug=recorder)
        if example:
            qcompiler.calibrate(prepared, [kwargs or tuple(args)])
            qcompiler.convert_fx(prepared, debug=recorder)
    if not example:
        stderr.print("note: not calibrated, so there is no int8 program to show; --example FILE makes one", style="yellow")
    return recorder.document()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', None) or error!s:.200}", code="viz-data") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no object", code="viz-data", hint='{"node name": number, ...}')
    return data
