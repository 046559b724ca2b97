"""What only long runs show of the native back end: `python -m tests.native_soak [threads sizes sanitizers valgrind ...]`.

* threads: 16 Python threads, 1,000 calls each, of three sizes: equal bits.
* sizes: 20,000 calls of changing sizes; the memory of the process stays flat.
* sanitizers: exported programs under the address, undefined-behaviour and thread sanitizers, on every instruction set that the machine has
  or emulates (native_without_silicon.py).
* valgrind: the same under valgrind, which knows no AVX-512 (`apt-get install valgrind`).

Without a name all of them. test_native_soak.py runs short versions.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.native.build.compiler import find
from qcompiler.backends.native.build.library import here
from tests import native_without_silicon
from tests.native_nets import converted, example, net

STRICT = ("-g", "-fno-omit-frame-pointer", "-ffp-contract=off", "-Ikernels")
SANITIZERS = ("address,undefined", "thread")
VALGRIND = ("valgrind", "-q", "--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=definite", "--errors-for-leak-kinds=definite")
UNKNOWN_TO_VALGRIND = ("avx_vnni", "avx512_vnni", "amx")
NETS = ("residual", "shuffle", "squeeze and excite", "sequence")


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def images(count: int, largest: int) -> Iterator[Tensor]:
    """Of changing batch, height and width."""
    chosen = random.Random(0)
    for _ in range(count):
        yield torch.rand(chosen.randint(1, 3), 3, chosen.randint(8, largest), chosen.randint(8, largest))


def small() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Hardswish(), nn.Conv2d(16, 32, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()


def differing_calls(threads: int, calls: int) -> int:
    """Of so many calls from each of so many threads at once, how many gave other bits than a call alone."""
    module, _ = converted(small(), example((1, 3, 24, 24)))
    given = [example(shape) for shape in ((1, 3, 24, 24), (2, 3, 40, 17), (1, 3, 9, 64))]
    expected = [module(x) for x in given]

    def work(first: int) -> int:
        turns = ((first + turn) % len(given) for turn in range(calls))
        return sum(not torch.equal(module(given[i]), expected[i]) for i in turns)

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(work, range(threads)))


def growth(calls: int, largest: int = 48) -> int:
    """Bytes by which the second half of so many calls of changing sizes made the process larger."""
    module, _ = converted(small(), example((1, 3, 24, 24)))
    with torch.inference_mode():
        module(torch.rand(3, 3, largest, largest))  # the largest arena that there will be
        middle = 0
        for number, x in enumerate(images(calls, largest)):
            if number == calls // 2:
                middle = resident()
            module(x)
    return resident() - middle


def program(folder: Path, name: str, instructions: str, *flags: str) -> Path:
    """The example program that export_c wrote, with the kernels of one instruction set."""
    compiler, objects = find(), []
    own = native_without_silicon.rewriting(compiler) if instructions in native_without_silicon.emulated() else compiler
    for unit in native_without_silicon.kernels(instructions):
        source = unit.source if unit.include else f"kernels/{unit.source.name}"
        include = [f"-I{path}" for path in unit.include]
        own.run([*unit.flags, *include, "-O1", *STRICT, *flags, "-c", str(source), "-o", f"{unit.name}.o"], folder)
        objects.append(f"{unit.name}.o")
    sources = ["main.c", f"{name}.c", f"{name}_layers.c", "kernels/run.c", "kernels/workers.c"]
    compiler.run(["-std=c11", "-O1", *STRICT, *flags, "-o", "program", *sources, *objects, "-lpthread", "-lm"], folder)
    return folder / "program"


def complaint(name: str, instructions: str, under: Sequence[str] = (), flags: Sequence[str] = ()) -> str:
    """What a tool says of the exported program of a network of native_nets.py on three threads; empty where all is well."""
    module, _, x = net(name)
    with tempfile.TemporaryDirectory() as kept:
        folder = qcompiler.export_c(module, Path(kept) / "c", name="small_net")
        command = [*under, str(program(folder, "small_net", instructions, *flags)), "small_net.weights", "x.f32", "3", "0", "y.f32"]
        x.contiguous().numpy().tofile(folder / "x.f32")
        environment = os.environ | {"QCOMPILER_ISA": instructions, "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            return f"{name}, {instructions}: {done.stderr}"
        equal = np.array_equal(np.fromfile(folder / "y.f32", np.float32), module(x).numpy().reshape(-1))
        return "" if equal else f"{name}, {instructions}: other bits"


def threads() -> str:
    differing = differing_calls(16, 1000)
    return f"{differing} of 16,000 calls gave other bits" if differing else ""


def sizes() -> str:
    grown = growth(20_000)
    return f"10,000 calls of changing sizes took {grown} bytes" if grown > 2**21 else ""


def sanitizers() -> str:
    cases = ((name, one, kind) for name in NETS for one in here() for kind in SANITIZERS)
    return "\n".join(filter(None, (complaint(name, one, flags=[f"-fsanitize={kind}"]) for name, one, kind in cases)))


def valgrind() -> str:
    if shutil.which("valgrind") is None:
        return "valgrind is not installed"
    known = [one for one in here() if one not in UNKNOWN_TO_VALGRIND]
    return "\n".join(filter(None, (complaint(name, one, VALGRIND) for name in NETS for one in known)))


CHECKS: Mapping[str, Callable[[], str]] = {check.__name__: check for check in (threads, sizes, sanitizers, valgrind)}


def main(*names: str) -> None:
    failed: dict[str, Any] = {}
    for name in names or CHECKS:
        failed[name] = CHECKS[name]()
        print(f"{name}: {failed[name] or 'well'}", flush=True)
    sys.exit(any(failed.values()))


if __name__ == "__main__":
    native_without_silicon.install()
    torch.set_num_threads(2)
    main(*sys.argv[1:])
