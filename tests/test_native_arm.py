"""A whole network as C on another architecture: cross-compiled for aarch64, run under qemu, equal bits to this machine's module."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import qcompiler
from qcompiler.backends.native import isa
from tests.native_abi import known
from tests.native_emulated import Emulated, cross_compiler, needs_emulator
from tests.native_nets import net


def test_a_network_computes_the_same_bits_on_arm(tmp_path: Path) -> None:
    needs_emulator()
    module, _, x = net("squeeze and excite")
    folder = qcompiler.export_c(module, tmp_path / "c", name="small")
    compiler = cross_compiler()
    assert compiler is not None
    objects = []
    for unit, (source, flags) in isa.units("aarch64").items():
        subprocess.run([*compiler, *flags, "-O1", "-c", f"kernels/{source.name}", "-o", f"{unit}.o"], cwd=folder, check=True)
        objects.append(f"{unit}.o")
    sources = ["main.c", "small.c", "small_layers.c", "kernels/run.c", "kernels/workers.c", *objects]
    command = [*compiler, "-std=c11", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Ikernels", "-static"]
    subprocess.run([*command, *sources, "-o", "program", "-lpthread", "-lm"], cwd=folder, check=True)
    x.numpy().tofile(folder / "input.f32")
    with torch.no_grad():
        expected = module(x).numpy().reshape(-1)
    for instructions in ("scalar", "neon"):
        emulator = ["qemu-aarch64", "-cpu", "max", "-E", f"QCOMPILER_ISA={instructions}"]
        subprocess.run([*emulator, "./program", "small.weights", "input.f32", "2", "0", "out"], cwd=folder, check=True, capture_output=True)
        assert np.array_equal(np.fromfile(folder / "out", np.float32), expected), instructions


def test_a_runner_that_fails_is_an_error_and_the_next_call_has_another(emulated_neon: Emulated) -> None:
    (emulated_neon.folder / "problem").write_bytes(b"too short")
    with pytest.raises(subprocess.CalledProcessError):
        emulated_neon._solve(emulated_neon.folder / "problem")
    x = known(np.arange(6, dtype=np.uint8))
    y = known(np.zeros(6, np.uint8))
    emulated_neon("copy", x=x.ctypes.data, y=y.ctypes.data, length=(1, 1, 1, 1, 1, 6), xs=(0,) * 5 + (1,), ys=(0,) * 5 + (1,), size=1)
    assert (y == x).all()
