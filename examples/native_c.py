"""A network as a C program: quantized with the native back end, written as C, built with the machine's compiler, and run on one input.

The weights are seeded, not trained: what counts is that the program's largest values are the module's, bit by bit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.native import isa
from qcompiler.backends.native.build.compiler import find


def small_net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Hardswish(), nn.Conv2d(16, 32, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()


def build(folder: Path, name: str, only: str | None = None) -> Path:
    """The example program that export_c wrote, with the kernels of all instruction sets or of one; its CMake file does the same."""
    compiler, machine, objects = find(), isa.architecture(), []
    for unit, (source, flags) in isa.units(machine, only).items():
        compiler.run([*flags, "-c", f"kernels/{source.name}", "-o", f"{unit}.o"], folder)
        objects.append(f"{unit}.o")
    sources = ["main.c", f"{name}.c", f"{name}_layers.c", "kernels/run.c", "kernels/workers.c"]
    compiler.run([*isa.COMMON_FLAGS, "-Ikernels", "-o", f"run_{name}", *sources, *objects, "-lpthread", "-lm"], folder)
    return folder / f"run_{name}"


def run(program: Path, weights: Path, x: Tensor, only: str | None = None) -> list[tuple[int, float]]:
    """The largest values that the program prints, with their places. `only`: the instruction set that it was built for."""
    values = program.parent / "input.f32"
    x.contiguous().numpy().tofile(values)
    environment = {**os.environ, "QCOMPILER_ISA": only} if only else None
    done = subprocess.run([program, weights, values], check=True, capture_output=True, text=True, env=environment)
    return [(int(place), float(value)) for place, value in map(str.split, done.stdout.splitlines())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to write the C; default: a temporary folder")
    parser.add_argument("--quick", action="store_true", help="build the portable kernels alone, which takes seconds")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp()) / "small_net"
    data = [torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    module = qcompiler.quantize(small_net(), data, backend="native", progress=False)
    written = qcompiler.export_c(module, folder, name="small_net")
    only = "scalar" if options.quick else None
    shown = run(build(written, "small_net", only), written / "small_net.weights", data[0], only)
    with torch.inference_mode():
        expected = module(data[0]).flatten()
    assert all(torch.tensor(value, dtype=torch.float32) == expected[place] for place, value in shown)
    print(f"{written}: the C program's largest values are the module's, to the last bit")
    for place, value in shown:
        print(f"class {place}: {value:.4f}")


if __name__ == "__main__":
    main()
