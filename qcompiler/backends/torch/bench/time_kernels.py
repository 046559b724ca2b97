"""Times the kernels of each op that has several: `python -m qcompiler.backends.torch.bench.time_kernels`.

Writes the microseconds for this machine's vectors into speed.json, beside those of others; narrower ones are measured with
ATEN_CPU_CAPABILITY=avx2 (or default) in the environment. One thread; the engine is fbgemm: the kernels that compete
compute the same way on all engines. Of ROUNDS interleaved rounds each kernel keeps its best, since others' work only adds time,
and what stands in the table is the sum over the shapes of the class. Recurrent layers, of which there is one int8 kernel an engine,
are timed against float at batches of 1 and 4, layers over 50 steps; qnnpack is not: it is the engine of
other CPUs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from qcompiler.backends.torch.bench.cases import Case, activation
from qcompiler.backends.torch.bench.measure import Bench
from qcompiler.backends.torch.kernels import elementwise
from qcompiler.backends.torch.kernels.speed import SPEED, shape_class, width
from qcompiler.backends.torch.kernels.table import entries
from qcompiler.backends.torch.runtime import packs, recurrent
from qcompiler.backends.torch.site import Emit, Kernel, host_isa
from qcompiler.ops.table import OPS

ENGINE = "fbgemm"
SHAPES = ((1, 64, 4, 4), (1, 1000, 1, 1), (1, 64, 14, 14), (1, 672, 7, 7), (1, 64, 56, 56), (1, 32, 112, 112), (1, 240, 28, 28))
ROUNDS, REPEATS = 25, 4
STEPS, RECURRENT_SIZES = 50, (32, 64, 128, 192, 256, 384, 512)


def _laid_out(shape: tuple[int, ...]) -> Tensor:
    return activation(shape, 255).contiguous(memory_format=torch.channels_last)


def _arguments(name: str, shape: tuple[int, ...]) -> Iterator[tuple[tuple[object, ...], dict[str, object]]]:
    """Typical calls of an op at one size; none where no two kernels compete."""
    x, channels = _laid_out(shape), shape[1]
    if name in ("add", "mul"):
        yield (x, _laid_out(shape)), {}
        if shape[2] > 1:
            yield (x, _laid_out((shape[0], channels, 1, 1))), {}
    elif name == "batch_norm":
        yield (x, torch.randn(channels), torch.rand(channels) + 0.5, torch.randn(channels), torch.randn(channels)), {}
    elif name == "group_norm":
        yield (x, torch.randn(channels), torch.randn(channels)), {"num_groups": 8}
    elif name == "mean":
        yield (x,), {"dim": (2, 3)}
    elif name in elementwise.FLOAT:
        yield (x,), {}


def cases() -> Iterator[Case]:
    """What is timed."""
    for name in OPS.rows:
        for shape in SHAPES:
            for args, attributes in _arguments(name, shape):
                yield Case(name, "timed", args, attributes)


def _program(case: Case, isa: str, index: int) -> Callable[[], Any]:
    bench = Bench(case, ENGINE, isa)
    kernel = _taking(bench)[index]
    bench.graph.output(kernel.emit(bench.site, Emit(bench.graph, bench.module)))
    module = fx.GraphModule(bench.module, bench.graph)
    return lambda: module.forward(*bench.inputs)


def _taking(bench: Bench) -> list[Kernel]:
    return [k for k in entries(bench.site) if ENGINE in k.engines and k.refuse(bench.site) is None]


def _best(programs: list[Callable[[], Any]]) -> list[float]:
    """Microseconds of each program in its best round."""
    best = [float("inf")] * len(programs)
    for _ in range(ROUNDS):
        for index, run in enumerate(programs):
            start = time.thread_time()  # of the processor: others' work is not counted
            for _ in range(REPEATS):
                run()
            best[index] = min(best[index], (time.thread_time() - start) / REPEATS * 1e6)
    return best


def time_all(isa: str, progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Microseconds by op, shape class and kernel, of the ops that more than one kernel takes."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for case in cases():
        bench = Bench(case, ENGINE, isa)
        kernels, place = _taking(bench), shape_class(bench.site)
        if len(kernels) > 1 and place is not None:
            times = _best([_program(case, isa, index) for index in range(len(kernels))])
            sums = found.setdefault(case.op, {}).setdefault(place, {})
            for kernel, microseconds in zip(kernels, times, strict=True):
                sums[kernel.label] = round(sums.get(kernel.label, 0.0) + microseconds, 1)
            progress(f"{case.op} {place} {sums}")
    return found


def _recurrent(op: str, size: int, batch: int) -> tuple[nn.Module, Tensor]:
    """A float layer of `size` inputs and outputs, and its input."""
    kinds = {"lstm": nn.LSTM, "gru": nn.GRU, "lstm_cell": nn.LSTMCell, "gru_cell": nn.GRUCell, "rnn_cell": nn.RNNCell}
    return kinds[op](size, size).eval(), torch.randn(batch, size) if op.endswith("_cell") else torch.randn(STEPS, batch, size)


def _packed_recurrent(op: str, float_layer: nn.Module, engine: str) -> Callable[[Tensor], object]:
    """The int8 dynamic form of a layer as compiled programs run it: packs of `engine`, and one call."""
    torch.backends.quantized.engine = engine  # type: ignore[misc]
    parts: list[Any] = [p.detach() for p in float_layer.parameters()]
    codes: list[Any] = [p.mul(100).clamp(-127, 127).to(torch.int8) for p in parts[:2]]
    int8: list[Any] = [(c, torch.ones(len(c)), torch.zeros(len(c)).long()) for c in codes]
    size = int(parts[1].shape[1])
    if op == "rnn_cell":
        made = [packs.prepack_linear(*(*weight, bias, 0, "")) for weight, bias in zip(int8, parts[2:], strict=True)]
        return lambda x: recurrent.rnn_cell_dynamic(x, None, made[0], made[1], size, relu=False, reduce_range=False, half=False)
    cells = [recurrent.prepack_cell(*(*int8[0], *int8[1], *parts[2:], True, False))]
    states: list[Any] = [None, None] if op.startswith("lstm") else [None]
    rest: list[Any] = [size] if op.endswith("_cell") else [size, False, False]
    rest += [False] if op.startswith("lstm") else []
    return lambda x: getattr(recurrent, f"{op}_dynamic")(x, *states, cells, *rest)


def time_recurrent(engine: str, progress: Callable[[str], None] = lambda text: None) -> dict[str, dict[str, list[float]]]:
    """[float, int8 dynamic] microseconds by op and number of weights of a cell."""
    found: dict[str, dict[str, list[float]]] = {}
    for op in ("lstm", "gru", "lstm_cell", "gru_cell", "rnn_cell"):
        for size in RECURRENT_SIZES:
            sums = [0.0, 0.0]
            for batch in (1, 4):
                layer, x = _recurrent(op, size, batch)
                packed = _packed_recurrent(op, layer, engine)
                with torch.inference_mode():
                    times = _best([lambda layer=layer, x=x: layer(x), lambda packed=packed, x=x: packed(x)])  # type: ignore[misc]
                sums = [a + b for a, b in zip(sums, times, strict=True)]
            weights = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
            found.setdefault(op, {})[str(weights)] = [round(s, 1) for s in sums]
            progress(f"{engine} {op} {size} {sums}")
    return found


def main() -> None:
    """Measures this instruction set and writes speed.json anew; with the argument `recurrent`, its times of recurrent layers alone."""
    torch.set_num_threads(1)
    torch.backends.quantized.engine = ENGINE  # type: ignore[misc]
    report = json.loads(SPEED.read_text(encoding="utf-8")) if SPEED.exists() else {}
    known, layers, here = report.get("microseconds", {}), report.get("recurrent", {}), width(host_isa())
    if "recurrent" not in sys.argv[1:]:
        known[here] = time_all(host_isa(), lambda text: print(text, file=sys.stderr))
    layers[here] = {e: time_recurrent(e, lambda text: print(text, file=sys.stderr)) for e in ("fbgemm", "onednn")}
    report = {"torch": torch.__version__.split("+")[0], "threads": 1, "shapes": SHAPES, "microseconds": known, "recurrent": layers}
    SPEED.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
