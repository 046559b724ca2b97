"""Builds the programs of this folder with the machine's C compiler and runs one: `limits` (default) or `layers [ISA [name]]`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from qcompiler.backends.native import isa
from qcompiler.backends.native.build import compiler

HERE = Path(__file__).parent


def build(program: str, folder: Path) -> Path:
    """The program, linked with the kernels of every instruction set."""
    sources = {} if program == "limits" else isa.units(isa.architecture())
    cc = compiler.find()
    for name, (source, flags) in sources.items():
        cc.run([*flags, "-c", str(source), "-o", f"{name}.o"], folder)
    cc.run(["-std=c11", "-O2", str(HERE / f"{program}.c"), *(f"{name}.o" for name in sources), "-o", program], folder)
    return folder / program


def main(program: str = "limits", *arguments: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([str(build(program, Path(folder))), *arguments], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
