"""The same bits on every path of the native back end: `python -m tests.native_paths [NET ...]`, of all networks without names.

Eight networks of torchvision at 64 x 64 pixels, a ViT, an encoder, a U-Net and an LSTM: on each instruction set that the machine has, or
emulates (tests/native_without_silicon.py), on 1 to 4 threads, compiled by the system's compiler, by clang and by zig, where they are; as a
C program for Arm under qemu, where zig and qemu-aarch64 are. A line a network says what was compared; the exit status is 1 where bits
differ.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.native import isa
from qcompiler.backends.native.build import compiler, library
from qcompiler.config.qconfig import default_dynamic_qconfig
from qcompiler.vision import import_torchvision
from tests import zoo
from tests.native_emulated import cross_compiler
from tests.native_nets import example
from tests.native_without_silicon import emulated, install
from tests.onnx_nets import UNet
from tests.test_native_transformers import Encoder

CNNS = ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "googlenet", "densenet121", "shufflenet_v2_x1_0", "efficientnet_b0")
THREADS = (1, 2, 3, 4)
ZIG = f"{sys.executable} -m ziglang cc"


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(24, 40, 2, batch_first=True), nn.Linear(40, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])  # type: ignore[no-any-return]


def vit() -> nn.Module:
    model: nn.Module = import_torchvision().models.VisionTransformer(32, 8, 2, 2, 48, 96, num_classes=9)
    nn.init.normal_(model.heads.head.weight)
    return model


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{name: (lambda name=name: zoo.load(name), (2, 3, 64, 64)) for name in CNNS},  # type: ignore[misc]
    "vit": (vit, (2, 3, 32, 32)),
    "encoder": (Encoder, (2, 37, 20)),
    "unet": (UNet, (2, 3, 48, 40)),
    "lstm": (Recurrent, (3, 11, 24)),
}


def quantized(name: str) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    make, shape = NETS[name]
    model, x = make().eval(), example(shape)
    mapping = qcompiler.QConfigMapping().set_global(default_dynamic_qconfig) if name == "lstm" else None
    prepared = qcompiler.prepare_fx(model, mapping, (x,), backend="native")
    if mapping is None:
        qcompiler.calibrate(prepared, [x, example(shape, 6)])
    return qcompiler.convert_fx(prepared), x


def compilers() -> list[str | None]:
    """What builds libraries here: the compiler of the system, and beside it clang and zig, where they are."""
    return [None, *(["clang"] if shutil.which("clang") else []), *([ZIG] if importlib.util.find_spec("ziglang") else [])]


def forget() -> None:
    """Libraries of this process are found anew, by the compiler that QCOMPILER_CC then names."""
    library.runtime.cache_clear()
    library.network.cache_clear()


def here_differ(module: Any, x: Tensor, expected: Tensor, names: Sequence[str]) -> list[str]:
    """What gives other bits on this machine, of these instruction sets."""
    found, before = [], torch.get_num_threads()
    for command, name in product(compilers(), names):
        asked = {library.ISA: name} | ({compiler.VARIABLE: command} if command else {})
        with patch.dict(os.environ, asked):
            forget()
            made = copy.deepcopy(module)
            for threads in THREADS:
                torch.set_num_threads(threads)
                if not torch.equal(made(x), expected):
                    found.append(f"{name}, {threads} threads, {command or 'the compiler of the system'}")
    forget()
    torch.set_num_threads(before)
    return found


class Arm:
    """The kernels compiled for aarch64 once, for all programs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.compiler = folder, cross_compiler() or []
        self.objects = [str(folder / f"{unit}.o") for unit in isa.units("aarch64")]
        for (source, flags), made in zip(isa.units("aarch64").values(), self.objects):
            subprocess.run([*self.compiler, *flags, "-c", str(source), "-o", made], check=True)

    def differ(self, module: Any, x: Tensor, expected: Tensor) -> list[str]:
        with tempfile.TemporaryDirectory() as kept:
            folder = qcompiler.export_c(module, Path(kept) / "c", name="net")
            sources = ["main.c", "net.c", "net_layers.c", "kernels/run.c", "kernels/workers.c", *self.objects]
            flags = ["-std=c11", "-O1", "-ffp-contract=off", "-Ikernels", "-static", "-lpthread", "-lm"]
            subprocess.run([*self.compiler, *sources, *flags, "-o", "program"], cwd=folder, check=True)
            x.contiguous().numpy().tofile(folder / "x.f32")
            found = []
            for name in isa.isas("aarch64"):
                emulator = ["qemu-aarch64", "-cpu", "max", "-E", f"QCOMPILER_ISA={name}"]
                command = [*emulator, "./program", "net.weights", "x.f32", "2", "0", "y.f32"]
                subprocess.run(command, cwd=folder, check=True, capture_output=True)
                if not np.array_equal(np.fromfile(folder / "y.f32", np.float32), expected.numpy().reshape(-1)):
                    found.append(f"{name} under qemu")
        return found


def main(names: list[str]) -> int:
    install()
    seen = [f"{name} (emulated)" if name in emulated() else name for name in library.here()]
    print(f"{', '.join(seen)}; {THREADS[0]} to {THREADS[-1]} threads; then Arm's under qemu", flush=True)
    failed = 0
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        arm = Arm(Path(folder)) if cross_compiler() else None
        for name in names or NETS:
            module, x = quantized(name)
            expected = module(x)
            differing = here_differ(module, x, expected, library.here())
            beside = {call.op for call in module.program.calls} - {"runtime.run_region", "operator.getitem"}  # as checks of sizes
            if arm and not beside:
                differing += arm.differ(module, x, expected)
            failed += bool(differing)
            print(f"{name}: {'; '.join(differing) or 'equal'}{'' if arm and not beside else ', not tried on Arm'}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
