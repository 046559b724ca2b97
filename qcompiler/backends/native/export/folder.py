"""The folder that export_c writes: kernels, the network, its weights, a header, an example program, and how to build it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qcompiler.backends.native import isa
from qcompiler.backends.native.build.library import RUN
from qcompiler.backends.native.export.ends import ends_of, inputs_of, program_of
from qcompiler.backends.native.export.implementation import implementation
from qcompiler.backends.native.export.interface import MOST, Interface, header
from qcompiler.backends.native.export.project import cmake, example, readme
from qcompiler.backends.native.export.weights import Weights, weights_of
from qcompiler.backends.native.numbers import numbers_beside
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.plan.table import Table, table_in_parts
from qcompiler.backends.native.region import NativeRegion
from qcompiler.backends.native.regions import only_region
from qcompiler.backends.torch.program.program import Program
from qcompiler.errors import ArtifactWriteError, ConfigError
from qcompiler.executable import Executable

Shape = tuple[int, ...]
Entry = Sequence[int] | Sequence[Sequence[int]]  # of one input, or of each


def export_c(module: nn.Module, folder: str | Path, sizes: Sequence[Entry] | None = None, name: str | None = None) -> Path:
    """Writes a converted module of the native back end as C: sources, weights, header, example, CMake file; returns the folder.

    `sizes`: the input sizes that the program will take, a list with an entry for each: the shape of the input, or a list of shapes where
    there are several inputs. Default: the sizes of the example. `name`: what C calls the network; default: the class of the model. The
    folder must be empty or missing. Raises ConfigError where a part of the network runs in torch, or a size does not fit;
    ArtifactWriteError where the folder cannot be written.
    """
    region = only_region(module, "export_c")
    title = module._title() if isinstance(module, Executable) else type(module).__name__
    tables = [_table(program_of(module), region, shapes) for shapes in _all_sizes(region, sizes)]
    interface = Interface(identifier(name or title), title, region.network, region.source, ends_of(module, region), tables)
    files = _files(interface, weights_of(region, interface.fingerprint))
    path = Path(folder)
    try:
        _write(path, files)
    except OSError as error:
        raise ArtifactWriteError(f"{path}: {error}") from error
    return path


def identifier(text: str) -> str:
    """A name that C takes, in lower case."""
    found = re.sub(r"\W", "_", text, flags=re.ASCII).lower().strip("_")
    return found if re.match(r"[a-z]", found) else f"net_{found}".rstrip("_")


def _all_sizes(region: NativeRegion, sizes: Sequence[Entry] | None) -> list[list[Shape]]:
    inputs = region.network.inputs
    if sizes is None:
        return [[shape for _, shape in inputs]]
    found = []
    for entry in sizes:
        shapes: Sequence[Any] = [entry] if len(inputs) == 1 and all(isinstance(n, int) for n in entry) else list(entry)
        if len(shapes) != len(inputs) or any(isinstance(shape, int) for shape in shapes):
            raise ConfigError(f"{entry!r:.80} has not one shape for each of the {len(inputs)} inputs", code="export-sizes")
        found.append([tuple(int(n) for n in shape) for shape in shapes])
    if not found:
        raise ConfigError("sizes= is an empty list", code="export-sizes", hint="leave it out for the sizes of the example")
    return found


def _table(program: Program, region: NativeRegion, shapes: Sequence[Shape]) -> Table:
    """The sizes for inputs that lie as C arrays do. Raises ConfigError for shapes that no C array has, InputError for those that a check of
    the model's refuses."""
    if any(len(shape) > MOST or any(n < 1 for n in shape) for shape in shapes):
        raise ConfigError(f"{list(shapes)!r:.80}: sizes of an export are at least 1, in at most {MOST} dimensions", code="export-sizes")
    names = [name for name, _ in region.network.inputs]
    strides = {name: torch.empty(shape, device="meta").stride() for name, shape in zip(names, shapes, strict=True)}
    filled = Sizes(region.network, dict(zip(names, shapes, strict=True)), strides=strides).filled()
    filled.shapes.update(numbers_beside(program, region.network, inputs_of(program), filled))
    return table_in_parts(filled)


def _files(interface: Interface, weights: Weights) -> dict[str, str | bytes]:
    name = interface.name
    return {
        f"{name}.h": header(interface),
        f"{name}.c": implementation(interface, weights),
        f"{name}_layers.c": interface.source.text.replace("qc_this_network", f"{name}_network"),
        f"{name}.weights": weights.content,
        "main.c": example(interface),
        "CMakeLists.txt": cmake(interface),
        "README.md": readme(interface),
    }


def _write(path: Path, files: dict[str, str | bytes]) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ArtifactWriteError(f"{path} is not an empty folder", hint="name a folder that does not exist")
    (path / "kernels").mkdir(parents=True, exist_ok=True)
    for source in sorted([*isa.KERNELS.glob("*.[ch]"), *RUN.glob("*.[ch]")]):
        shutil.copyfile(source, path / "kernels" / source.name)
    for name, content in files.items():
        (path / name).write_bytes(content.encode() if isinstance(content, str) else content)
