"""Networks in ExecuTorch's runtime, through XNNPACK: `python -m tests.executorch_runs [resnet18 ...]`, the table of docs/torch-export.md.

Needs the package executorch, which no other test does. Of each network: the calls that XNNPACK's partitioner left outside, how near the
runtime is to the program that export_program made (SQNR), both to float, and the least processor time of many calls.
"""

from __future__ import annotations

import importlib
import sys
import time
import warnings
from collections.abc import Callable

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import fx, nn

import qcompiler
from qcompiler.debug import compute_sqnr
from tests import zoo

CALLS = 25
NETWORKS = ("resnet18", "mobilenet_v2", "mobilenet_v3_large", "shufflenet_v2_x1_0", "efficientnet_b0", "googlenet")


def compiled(prepared: fx.GraphModule) -> tuple[bytes, nn.Module, list[str]]:
    """The .pte file, the program that it was made of, and what XNNPACK does not compute."""
    program = qcompiler.export_program(prepared, ops="xnnpack", dynamic_shapes={})
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    calls = [str(node.target) for node in lowered.exported_program().graph.nodes if node.op == "call_function"]
    outside = [call.partition(":")[2].partition(">")[0].strip() or call for call in calls]
    outside = [call for call in outside if "getitem" not in call and "executorch_call_delegate" not in call]
    return lowered.to_executorch().buffer, program.module(), outside


def least(call: Callable[[], object]) -> float:
    """Milliseconds of processor time."""
    took = []
    for _ in range(CALLS):
        begin = time.process_time()
        call()
        took.append(time.process_time() - begin)
    return min(took) * 1e3


def measure(name: str) -> str:
    model, (x, *images) = zoo.load(name), zoo.inputs(n=5)
    prepared = qcompiler.prepare_fx(model, None, (images[0],), backend="xnnpack")
    qcompiler.calibrate(prepared, images, progress=False)
    file, program, outside = compiled(prepared)
    method = Runtime.get().load_program(file).load_method("forward")
    native = qcompiler.quantize(model, images, backend="native", progress=False)
    with torch.inference_mode():
        expected, exact, (got,) = model(x), program(x), method.execute((x,))
        dB = [float(compute_sqnr(*pair)) for pair in ((exact, got), (expected, exact), (expected, got))]
        took = [least(lambda: method.execute((x,))), least(lambda: native(x)), least(lambda: model(x))]
    figures = [*(f"{value:.1f}" for value in (*dB, len(file) / 1e6)), *(f"{ms:.2f}" for ms in took)]
    return f"| {name} | {', '.join(dict.fromkeys(outside)) or 'nothing'} | {' | '.join(figures)} |"


def main() -> None:
    warnings.simplefilter("ignore")
    importlib.import_module("executorch.kernels.quantized")  # kernels of the conversions that stay outside
    torch.set_num_threads(1)
    print("| network | left outside | runtime and program, dB | program | runtime | MB | ExecuTorch, ms | native | float |")
    for name in sys.argv[1:] or NETWORKS:
        print(measure(name), flush=True)


if __name__ == "__main__":
    main()
