"""Times int8 convolutions and linears against float: `python -m qcompiler.backends.torch.bench.time_slower avx2 avx512 avx512_vnni`.

Writes slower.json. Each instruction set is measured in a process of its own, whose libraries are limited to it. One thread, processor
time, int8 and float called in turn; of all rounds each keeps its least, since others' work only adds time. Float takes int8 and gives int8:
its values are expanded and rounded, as they are where it stands between int8 ops. All cases are timed PASSES times, far apart. Sizes below
COUNTED are left out: there the call dominates, which a table of classes cannot judge.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompiler.backends.torch.bench.cases import Case, activation, weight
from qcompiler.backends.torch.bench.measure import Bench
from qcompiler.backends.torch.kernels.slower import TABLE, class_of_conv, class_of_linear
from qcompiler.backends.torch.kernels.table import Refused, select
from qcompiler.backends.torch.site import VNNI, Emit

LIMITS = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "FBGEMM_ENABLE_INSTRUCTIONS": "AVX512"},
    "avx512_vnni": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
}
PASSES, ROUNDS, SLICE = 2, 6, 1e-3  # seconds that the repeats of one round should take
COUNTED = 30.0  # microseconds of int8
LIMITED = "QCOMPILER_TIME_SLOWER"  # set in the process that measures


@dataclass(frozen=True)
class Timed:
    """A call by its shapes: of the activation and of the weight (O, I/g, *kernel)."""

    op: str
    shape: tuple[int, ...]
    weight: tuple[int, ...]
    groups: int = 1
    stride: int = 1

    @property
    def place(self) -> str | None:
        """Its class."""
        if self.op == "linear":
            return class_of_linear(self.weight, self.shape[0])
        return class_of_conv(self.weight, self.groups, [1] * (len(self.weight) - 2))

    def case(self) -> Case:
        x, window = activation(self.shape, 127), self.weight[2:]
        settings: dict[str, Any] = {}
        if window:
            x = x.movedim(1, -1).contiguous().movedim(-1, 1)  # as int8 convolutions hand it on
            settings = {"stride": [self.stride] * len(window), "padding": [k // 2 for k in window], "groups": self.groups}
        return Case(self.op, "timed", (x, weight(self.weight, 0), torch.randn(self.weight[0])), settings)


def _conv(op: str, image: tuple[int, ...], outputs: int, window: tuple[int, ...], groups: int = 1, stride: int = 1) -> Timed:
    return Timed(op, (1, *image), (outputs, image[0] // groups, *window), groups, stride)


def _depthwise() -> Iterator[Timed]:
    for channels, size in ((48, 56), (96, 28), (192, 28), (384, 14), (576, 7)):
        for window in ((2, 2), (3, 3), (5, 5), (7, 7), (9, 9), (11, 11), (13, 13), (21, 21), (1, 3), (7, 1), (1, 9), (11, 1), (1, 21)):
            yield _conv("conv2d", (channels, size, size), channels, window, channels)
        for k in (3, 9):
            yield _conv("conv2d", (channels, 2 * size, 2 * size), channels, (k, k), channels, stride=2)
    for channels, size in ((64, 1024), (96, 256), (256, 512), (512, 256)):
        for k in (2, 3, 5, 7, 9, 11, 15, 31):
            yield _conv("conv1d", (channels, size), channels, (k,), channels)
    for channels in (32, 96, 128):
        for k in (3, 5):
            yield _conv("conv3d", (channels, 8, 16, 16), channels, (k, k, k), channels)


def _dense() -> Iterator[Timed]:
    for inputs in (1, 2, 3, 4, 6, 8):
        for outputs in (4, 16, 32, 64):
            for k, size, stride in ((1, 56, 1), (1, 112, 1), (3, 56, 1), (3, 112, 1), (3, 224, 2), (5, 28, 1), (5, 56, 1), (7, 112, 2)):
                yield _conv("conv2d", (inputs, size, size), outputs, (k, k), stride=stride)
            for k, size, stride in ((1, 4096, 1), (3, 2048, 1), (9, 1024, 1), (9, 4096, 1), (16, 8192, 4)):
                yield _conv("conv1d", (inputs, size), outputs, (k,), stride=stride)
        for outputs in (16, 32):
            for k, size in ((1, 16), (3, 8), (3, 16)):
                yield _conv("conv3d", (inputs, size, 16, 16), outputs, (k, k, k))
    for inputs in (16, 64, 256):
        for outputs in (1, 3, 8):
            for k, size in ((1, 56), (1, 112), (3, 28), (3, 56), (7, 28)):
                yield _conv("conv2d", (inputs, size, size), outputs, (k, k))
            for k in (1, 3, 11):
                yield _conv("conv1d", (inputs, 4096), outputs, (k,))
        yield _conv("conv3d", (inputs, 8, 16, 16), 2, (3, 3, 3))


def _grouped() -> Iterator[Timed]:
    for width, counts in ((2, (16, 30, 64)), (3, (20, 32)), (4, (15, 16, 32, 58)), (8, (8, 16, 30)), (16, (8, 24)), (30, (8, 16))):
        for count in counts:
            for k, size in ((1, 28), (1, 56), (3, 28), (3, 56)):
                yield _conv("conv2d", (width * count, size, size), width * count, (k, k), count)
            yield _conv("conv1d", (width * count, 512), width * count, (3,), count)
            yield _conv("conv1d", (width * count, 512), width * count, (1,), count)
        yield _conv("conv3d", (width * 8, 8, 16, 16), width * 8, (3, 3, 3), 8)


def _linear() -> Iterator[Timed]:
    sizes = ((1024, 1024), (512, 1000), (768, 3072), (3072, 768), (4096, 512))
    few = ((4, 1024), (8, 2048), (2, 256), (1024, 4), (2048, 8), (4096, 1))
    for rows in (1, 2, 4, 16, 64, 196, 1024):
        for inputs, outputs in (*sizes, *few):
            if rows < 1024 or (inputs, outputs) in few:
                yield Timed("linear", (rows, inputs), (outputs, inputs))


def cases() -> Iterator[Timed]:
    """What is timed."""
    yield from _depthwise()
    yield from _dense()
    yield from _grouped()
    yield from _linear()


def products(case: Case) -> int:
    """Multiply-accumulates of a call."""
    result, values = case.truth(), case.args[1].values
    assert isinstance(result, Tensor)
    return result.numel() * int(values[0].numel())


def packed(graph: fx.Graph, module: torch.nn.Module) -> None:
    """Runs what a program runs once, and puts what it gave in its place."""
    for node in list(graph.nodes):
        if node.op == "call_function" and getattr(node.target, "once", False):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: getattr(module, str(n.target)))
            setattr(module, f"made_{node.name}", node.target(*args, **kwargs))
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.create_node("get_attr", f"made_{node.name}"))
            graph.erase_node(node)


def _calls(case: Case, engine: str, isa: str) -> list[Callable[[], Any]]:
    """int8, and float between int8; empty where no kernel takes it."""
    bench = Bench(case, engine, isa)
    kernel = select(bench.site)
    if isinstance(kernel, Refused):
        return []
    bench.graph.output(kernel.emit(bench.site, Emit(bench.graph, bench.module)))
    packed(bench.graph, bench.module)
    program, (x,) = fx.GraphModule(bench.module, bench.graph), bench.inputs
    function, w, bias = case.row.fn, case.args[1].double().float(), case.args[2]
    scale, zero_point = bench.scale, bench.zero_point

    def in_float() -> Tensor:
        return torch.quantize_per_tensor(function(x.dequantize(), w, bias, **case.attributes), scale, zero_point, torch.quint8)

    return [lambda: program.forward(x), in_float]


def _least(calls: list[Callable[[], Any]]) -> list[float]:
    """Microseconds of each call, in its best round."""
    repeats, best = [], [float("inf")] * len(calls)
    for call in calls:
        call()
        start = time.process_time()
        call()
        repeats.append(max(1, int(SLICE / max(time.process_time() - start, 1e-6))))
    for _ in range(ROUNDS):
        for index, call in enumerate(calls):
            start = time.process_time()
            for _ in range(repeats[index]):
                call()
            best[index] = min(best[index], (time.process_time() - start) / repeats[index] * 1e6)
    return best


def time_engine(engine: str, isa: str, progress: Callable[[str], None] = lambda text: None) -> dict[str, dict[str, list[float]]]:
    """[least, most, products] by op and class."""
    torch.backends.quantized.engine = engine  # type: ignore[misc]
    best: dict[int, list[float]] = {}
    for _ in range(PASSES):
        for index, timed in enumerate(cases()):
            calls = _calls(timed.case(), engine, isa) if timed.place is not None else []
            if calls:
                with torch.inference_mode():
                    times = _least(calls)
                best[index] = [min(a, b) for a, b in zip(times, best.get(index, times), strict=True)]
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for index, timed in enumerate(cases()):
        int8, real = best.get(index, (0.0, 1.0))
        ratio = round(int8 / real, 2)
        progress(f"{isa} {engine} {timed.place}: {timed.shape} {timed.weight} {int8:.1f} {real:.1f} {ratio}")
        if timed.place is not None and int8 >= COUNTED:
            found.setdefault((timed.op, timed.place), []).append((ratio, products(timed.case()) / int8))
    return in_classes(found)


def in_classes(found: Mapping[tuple[str, str], Sequence[tuple[float, float]]]) -> dict[str, dict[str, list[float]]]:
    """[least, most, products] of each (op, class), from the ratios of its sizes and their products a microsecond.

    A class of a single size, which would decide alone, is left out.
    """
    result: dict[str, dict[str, list[float]]] = {}
    for (op, place), sizes in found.items():
        ratios, speeds = zip(*sizes, strict=True)
        if len(sizes) > 1:
            result.setdefault(op, {})[place] = [min(ratios), max(ratios), round(max(speeds) * COUNTED)]
    return result


def in_lines(report: Mapping[str, Any]) -> str:
    """The report as JSON, with an entry a line."""
    return re.sub(r"\[\s+([^][]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", json.dumps(report, indent=1, sort_keys=True)) + "\n"


def measured(isa: str) -> dict[str, Any]:
    """Times by library of one instruction set, in this process."""
    torch.set_num_threads(1)
    engines = ("x86", "fbgemm", "onednn") if isa in VNNI else ("fbgemm", "onednn")
    return {engine: time_engine(engine, isa, lambda text: print(text, file=sys.stderr)) for engine in engines}


def main(sets: list[str]) -> None:
    """Measures instruction sets, each in a process of its own, and writes slower.json."""
    if LIMITED in os.environ:
        print(json.dumps(measured(os.environ[LIMITED])))
        return
    known = json.loads(TABLE.read_text(encoding="utf-8")).get("times_float", {}) if TABLE.exists() else {}
    for isa in sets:
        environment = {**os.environ, **LIMITS[isa], LIMITED: isa}
        command = [sys.executable, "-m", "qcompiler.backends.torch.bench.time_slower"]
        known[isa] = json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
        report = {"torch": torch.__version__.split("+")[0], "threads": 1, "entries": "least, most, products", "times_float": known}
        TABLE.write_text(in_lines(report), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
