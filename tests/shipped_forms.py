"""What each form of a network costs where it runs: `python -m tests.shipped_forms [mobilenet_v2]`, the table of docs/deployment.md.

Each form runs in processes of its own with one thread: processor time from the start to the first answer, of the fastest of many calls,
and the most memory it held. The weights are seeded: what is computed means nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import qcompiler
from qcompiler.vision import import_torchvision

ROUNDS = 3  # processes of each form; the least counts
LOADS = {
    "float, as Python": "from qcompiler.vision import import_torchvision; net = import_torchvision().models.{name}(weights=None).eval(); "
    "net.load_state_dict(torch.load('float.pt'))",
    "float, TorchScript": "net = torch.jit.load('float_script.pt')",
    "file of save": "import qcompiler; net = qcompiler.load('torch.qc')",
    "exported source": "import sys; sys.path.insert(0, 'source'); import model; net = model.load()",
    "TorchScript": "torch.backends.quantized.engine = 'x86'; net = torch.jit.load('script.pt')",
    "file of save, native": "import qcompiler; net = qcompiler.load('native.qc')",
    "torch.export": "net = torch.export.load('net.pt2').module()",
}
FILES = {
    "float, as Python": ("float.pt",), "float, TorchScript": ("float_script.pt",), "file of save": ("torch.qc",),
    "exported source": ("source",), "TorchScript": ("script.pt",), "file of save, native": ("native.qc",), "torch.export": ("net.pt2",),
    "C program": ("c/build/run_net", "c/net.weights"), "ONNX": ("net.onnx",),
}  # fmt: skip
RUN = """
import time, numpy, torch
torch.set_num_threads(1)
x = torch.from_numpy(numpy.load("x.npy"))
{load}
with {mode}:
    net(x)
    first = time.process_time()
    took = []
    for _ in range({calls}):
        begin = time.process_time()
        net(x)
        took.append(time.process_time() - begin)
import resource
print(first, min(took), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write(name: str, folder: Path) -> None:
    """All forms of the network, into the folder."""
    torch.manual_seed(0)
    model = getattr(import_torchvision().models, name)(weights=None).eval()
    data = [torch.randn(2, 3, 224, 224) for _ in range(2)]
    np.save(folder / "x.npy", torch.randn(1, 3, 224, 224).numpy())
    torch.save(model.state_dict(), folder / "float.pt")
    torch.jit.freeze(torch.jit.script(model)).save(str(folder / "float_script.pt"))
    small = qcompiler.quantize(model, data, progress=False)
    qcompiler.save(small, folder / "torch.qc")
    qcompiler.export_source(small, folder / "source")
    torch.jit.script(small).save(str(folder / "script.pt"))
    native = qcompiler.quantize(model, data, backend="native", progress=False)
    qcompiler.save(native, folder / "native.qc")
    qcompiler.export_c(native, folder / "c", name="net", sizes=[(1, 3, 224, 224)])
    for backend in ("onnx", "reference"):
        prepared = qcompiler.prepare_fx(model, None, (data[0][:1],), backend=backend)
        qcompiler.calibrate(prepared, data, progress=False)
        if backend == "onnx":
            qcompiler.export_onnx(prepared, folder / "net.onnx", dynamic_shapes={})
        else:
            torch.export.save(qcompiler.export_program(prepared, dynamic_shapes={}), folder / "net.pt2")


def run(form: str, name: str, folder: Path, calls: int) -> list[float]:
    """Processor time to the first answer and of a call, in seconds, and KiB of memory."""
    mode = "torch.no_grad()" if form == "torch.export" else "torch.inference_mode()"
    code = RUN.format(load=LOADS[form].format(name=name), mode=mode, calls=calls)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return [float(value) for value in done.stdout.split()[-3:]]


def run_c(folder: Path) -> list[float]:
    """The C program, linked statically: its one call, with all that is before it."""
    build = ["cmake", "-B", "build", "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_EXE_LINKER_FLAGS=-static -s"]
    if not (folder / "c" / "build").exists():
        for command in (build, ["cmake", "--build", "build"]):
            subprocess.run(command, cwd=folder / "c", check=True, capture_output=True)
    np.load(folder / "x.npy").tofile(folder / "c" / "x.f32")
    child = os.fork()
    if not child:
        os.chdir(folder / "c")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.execv("build/run_net", ["run_net", "net.weights", "x.f32"])
    _, status, used = os.wait4(child, 0)
    assert status == 0
    return [used.ru_utime + used.ru_stime, float("nan"), float("nan")]  # the memory counts what was forked


def bytes_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="mobilenet_v2")
    parser.add_argument("--calls", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write(options.name, folder)
        found: dict[str, list[list[float]]] = {}
        for _ in range(ROUNDS):
            for form in LOADS:
                found.setdefault(form, []).append(run(form, options.name, folder, options.calls))
            found.setdefault("C program", []).append(run_c(folder))
        print("form, MB on disk, seconds to the first answer, milliseconds of a call, MB of memory")
        for form, rounds in found.items():
            first, call, memory = (min(values) for values in zip(*rounds, strict=True))
            size = (
                bytes_of(folder / FILES[form])
                if form in FILES
                else sum(bytes_of(folder / "c" / f) for f in ("build/run_net", "net.weights"))
            )
            print(f"{form:24} {size / 1e6:6.1f} {first:7.2f} {call * 1e3:7.2f} {memory / 1e3:7.0f}")
        print(f"{'ONNX':24} {sum(bytes_of(folder / name) for name in FILES['ONNX']) / 1e6:6.1f}")


if __name__ == "__main__":
    main()
