"""A network as an ONNX file, beside our own int8 module, in ONNX Runtime and OpenVINO: how near each is to float, and how fast.

EfficientNet-Lite0 with its trained weights, calibrated on crops of four photos and compared on crops of four others; or a network of
torchvision with seeded weights, whose answers mean nothing. Times are processor time of one thread, the least of several calls.
"""

from __future__ import annotations

import argparse
import importlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import efficientnet_lite0
import measure
import photos
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import qcompiler
from qcompiler.debug import compute_sqnr
from qcompiler.vision import import_torchvision

Run = Callable[[Tensor], Tensor]
SUMS = ("Conv", "Gemm", "MatMul")


def in_onnx_runtime(path: Path) -> tuple[Run, str]:
    """How to run the file, and how many sums of products run in integers."""
    ort, ir = importlib.import_module("onnxruntime"), importlib.import_module("onnx_ir")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in ir.load(options.optimized_model_filepath).graph]
    integers = sum(op.startswith("QLinearConv") or op in ("QGemm", "QLinearMatMul") for op in ops)
    floats = sum(op in SUMS or op in ("FusedConv", "FusedGemm", "FusedMatMul") for op in ops)
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]), f"{integers} of {integers + floats}"


def in_openvino(path: Path) -> tuple[Run, str]:
    openvino = importlib.import_module("openvino")
    compiled = openvino.compile_model(str(path), "CPU", {"INFERENCE_NUM_THREADS": 1})
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = [tuple(str(getattr(info[key], "value", info[key])) for key in ("layerType", "runtimePrecision")) for info in infos]
    sums = [precision for kind, precision in kinds if kind in ("Convolution", "FullyConnected", "MatMul")]
    return lambda x: torch.from_numpy(compiled([x.numpy()])[0]), f"{sum(p in ('u8', 'i8') for p in sums)} of {len(sums)}"


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    """The least processor time of a call."""
    found = []
    with torch.inference_mode():
        for _ in range(rounds + 2):
            start = time.process_time()
            call()
            found.append(time.process_time() - start)
    return min(found[2:]) * 1e3


def load(name: str, count: int) -> tuple[nn.Module, Tensor, Tensor]:
    calibration, evaluation = photos.split(count, count)
    if name == efficientnet_lite0.MODEL:
        return efficientnet_lite0.load_trained(), calibration, evaluation
    torch.manual_seed(0)
    model: nn.Module = getattr(import_torchvision().models, name)(weights=None)
    return model.eval(), calibration, evaluation


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("models", nargs="*", default=[efficientnet_lite0.MODEL], help="efficientnet-lite0, or names of torchvision")
    arguments.add_argument("--quick", action="store_true", help="16 crops and few calls; the figures are then rough")
    arguments.add_argument("--out", type=Path, help="folder for the files; default: a temporary one")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    folder = options.out or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    for name in options.models:
        show(name, folder, *load(name, 16 if options.quick else 64), rounds=3 if options.quick else 20)


def show(name: str, folder: Path, model: nn.Module, calibration: Tensor, evaluation: Tensor, rounds: int) -> None:
    """One network: a line for each way to run it."""
    batches: Sequence[Tensor] = calibration.split(8)
    prepared = qcompiler.prepare_fx(model, None, (batches[0],), backend="onnx")
    qcompiler.calibrate(prepared, batches, progress=False)
    path = qcompiler.export_onnx(prepared, folder / f"{name}.onnx")
    ours = qcompiler.quantize(model, batches, isa="avx2", progress=False)  # for any x86, as the file is
    table = Table("", "SQNR, dB", "same top-1", "ms", "sums in integers", title=f"{name}, {os.path.getsize(path) / 1e6:.1f} MB")
    expected = measure.run_batched(model, evaluation)
    ways = {"float": (model, ""), "ours, torch": (ours, ""), "ONNX Runtime": in_onnx_runtime(path), "OpenVINO": in_openvino(path)}
    for way, (run, sums) in ways.items():
        with torch.inference_mode():
            made = torch.cat([run(part) for part in evaluation.split(16)])
        near = [f"{float(compute_sqnr(expected, made)):.1f}", f"{measure.agreement(expected, made):.1%}"] if way != "float" else ["", ""]
        table.add_row(way, *near, f"{milliseconds(lambda run=run: run(evaluation[:1]), rounds):.2f}", sums)
    Console().print(table)


if __name__ == "__main__":
    main()
