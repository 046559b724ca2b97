"""Side by side with torch.ao's FX flow, call by call: `python -m tests.against_torch_ao [MODEL ...] [--rounds N] [--threads N]`.

All modules of a model are built in one process and called in turn, so that what else the machine does meets all alike; a time is the
median of the rounds, the smallest in brackets. Both sides have torch.ao's and our default settings for x86, and for onednn those of
each one's onednn backend config, which adds residuals inside convolutions. SQNR is against the float model on one more image.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.debug import compute_sqnr
from qcompiler.quantization.backend_config import get_onednn_backend_config
from tests import zoo

MODELS = ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "googlenet", "densenet121", "shufflenet_v2_x1_0", "efficientnet_b0")
ENGINES = ("x86", "onednn")
CALIBRATION = 4  # images


@dataclass
class Runner:
    """One module, the engine that must be current when it is called, and what was seen of it."""

    name: str
    engine: str
    module: Callable[[Tensor], Tensor]
    sqnr: float = float("nan")
    milliseconds: list[float] = field(default_factory=list)

    def call(self, x: Tensor) -> Tensor:
        torch.backends.quantized.engine = self.engine  # type: ignore[misc]
        return self.module(x)

    def measure(self, x: Tensor) -> None:
        torch.backends.quantized.engine = self.engine  # type: ignore[misc]
        start = time.perf_counter()
        self.module(x)
        self.milliseconds.append((time.perf_counter() - start) * 1e3)


def theirs(model: nn.Module, engine: str, images: list[Tensor]) -> nn.Module:
    """What torch.ao makes of the model."""
    from torch.ao.quantization import backend_config as configs
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    config = configs.get_onednn_backend_config() if engine == "onednn" else configs.get_native_backend_config()
    prepared = prepare_fx(model, get_default_qconfig_mapping(engine), (images[0],), backend_config=config)
    for x in images:
        prepared(x)
    converted: nn.Module = convert_fx(prepared, backend_config=config)
    return converted


def ours(model: nn.Module, engine: str, images: list[Tensor]) -> nn.Module:
    """What we make of it."""
    config = get_onednn_backend_config() if engine == "onednn" else None
    mapping = qcompiler.get_default_qconfig_mapping(engine)
    prepared = qcompiler.prepare_fx(model, mapping, (images[0],), engine=engine, backend_config=config)
    qcompiler.calibrate(prepared, images)
    return qcompiler.convert_fx(prepared)


def runners(name: str, images: list[Tensor], x: Tensor) -> tuple[list[Runner], list[str]]:
    """Every form of one model that can be called, checked once, and why others cannot."""
    found, failed = [], []
    expected = zoo.load(name)(x)
    for side, make in (("torch.ao", theirs), ("qcompiler", ours)):
        for engine in ENGINES:
            torch.backends.quantized.engine = engine  # type: ignore[misc]
            made = make(zoo.load(name), engine, images)
            for form, change in (("as returned", lambda m: m), ("scripted", lambda m: torch.jit.freeze(torch.jit.script(m)))):
                title = f"{side} {engine}, {form}"
                try:
                    runner = Runner(title, engine, change(made))
                    for _ in range(5):  # TorchScript optimizes in its first calls
                        result = runner.call(x)
                    runner.sqnr = float(compute_sqnr(expected, result))
                    found.append(runner)
                except Exception as error:  # a peer that fails is a finding
                    failed.append(f"{title}: {str(error).strip().splitlines()[-1][:90]}")
    return found, failed


def compare(name: str, rounds: int) -> tuple[list[Runner], list[str]]:
    """The runners of one model with their times."""
    *images, x = zoo.inputs(1, n=CALIBRATION + 1)
    with torch.no_grad():
        found, failed = runners(name, images, x)
        for _ in range(rounds):
            for runner in found:
                runner.measure(x)
    return found, failed


def main() -> None:
    """Prints a line for each form of each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    arguments: Any = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    for name in arguments.models:
        found, failed = compare(name, arguments.rounds)
        for r in found:
            median, least = statistics.median(r.milliseconds), min(r.milliseconds)
            print(f"{name:20} {r.name:32} {median:7.2f} ms ({least:6.2f}) {r.sqnr:6.1f} dB", flush=True)
        for text in failed:
            print(f"{name:20} fails: {text}", flush=True)


if __name__ == "__main__":
    main()
