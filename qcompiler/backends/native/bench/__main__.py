"""Builds the programs of this folder with the system's compiler and runs one: `limits` (default) or `layers [ISA [name]]`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from qcompiler.backends.native import isa

HERE = Path(__file__).parent


def build(program: str, folder: Path) -> Path:
    """The program, linked with the kernels of every instruction set."""
    compiler = shutil.which("cc") or shutil.which("gcc") or "cc"
    sources = {} if program == "limits" else isa.units(isa.architecture())
    objects = [str(folder / f"{name}.o") for name in sources]
    for target, (source, flags) in zip(objects, sources.values()):
        subprocess.run([compiler, *flags, "-c", str(source), "-o", target], check=True)
    subprocess.run([compiler, "-std=c11", "-O2", str(HERE / f"{program}.c"), *objects, "-o", str(folder / program)], check=True)
    return folder / program


def main(program: str = "limits", *arguments: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([str(build(program, Path(folder))), *arguments], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
