"""MobileNetV2 edited by hand for eager quantization: stubs, FloatFunctional for the sums, ReLU for ReLU6, a list of what to fuse.

Quantized twice: one scale a tensor with min-max, and one a channel with the histogram. Beside it the unedited model through
prepare_fx, which needs none of these edits. The weights are seeded, not trained, so agreement is the signal-to-noise ratio to the
float model of the same edits. The result is scripted, saved and loaded, and gives the same bits each time.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import measure
import mobilenet_v2
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import qcompiler
import qcompiler.quantization as quantization
from qcompiler.debug import compute_sqnr
from qcompiler.nn.quantized import FloatFunctional
from qcompiler.observers import HistogramObserver, default_per_channel_weight_observer


class Block(nn.Module):
    """torchvision's InvertedResidual with its sum in a FloatFunctional, which is where the sum's range is observed."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv = block.conv
        self.residual = bool(block.use_res_connect)
        self.skip_add = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        return self.skip_add.add(x, self.conv(x)) if self.residual else self.conv(x)


class HandEdited(nn.Module):
    """The edited network: floats in, floats out, int8 between the stubs once it is converted."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        parts = copy.deepcopy(model)
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.features = nn.Sequential(*(Block(part) if hasattr(part, "use_res_connect") else part for part in parts.features))
        self.classifier = parts.classifier
        replace_relu6(self.features)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(self.quant(x))
        x = nn.functional.adaptive_avg_pool2d(x, (1, 1))
        return self.dequant(self.classifier(torch.flatten(x, 1)))


def replace_relu6(module: nn.Module) -> None:
    """Eager fusion knows ReLU alone. (The graph flow fuses ReLU6, and what it cuts off costs nothing.)"""
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU6):
            setattr(module, name, nn.ReLU())
        else:
            replace_relu6(child)


def fused(model: nn.Module) -> nn.Module:
    """conv, bn (, relu) in each block as one module."""
    chains = []
    for path, module in model.named_modules():
        children = list(module.named_children())
        for i, (name, child) in enumerate(children):
            if isinstance(child, nn.Conv2d) and isinstance(module, nn.Sequential):
                after = [n for n, m in children[i + 1 : i + 3] if isinstance(m, (nn.BatchNorm2d, nn.ReLU))]
                chains.append([f"{path}.{n}" for n in (name, *after)])
    return quantization.fuse_modules(model, chains)


def per_channel_histogram() -> quantization.QConfig:
    return quantization.QConfig(HistogramObserver, default_per_channel_weight_observer)


def converted(model: nn.Module, qconfig: quantization.QConfig, batches: list[Tensor]) -> nn.Module:
    """prepare, calibrate, convert."""
    small = fused(HandEdited(model))
    small.qconfig = qconfig  # type: ignore[assignment]
    prepared = quantization.prepare(small, inplace=True)
    qcompiler.calibrate(prepared, batches)
    return quantization.convert(prepared, inplace=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="small images, few rounds")
    options = arguments.parse_args()
    size, rounds = (96, 3) if options.quick else (224, 30)
    console = Console()

    model = mobilenet_v2.seeded_model()
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randn(4, 3, size, size, generator=generator) for _ in range(4)]
    held_out = torch.randn(8, 3, size, size, generator=generator)
    one = held_out[:1]

    hand = HandEdited(model)
    graph = qcompiler.quantize(model, batches, qcompiler.QConfigMapping().set_global(per_channel_histogram()), progress=False)
    results = {
        "eager, min-max per tensor": (hand, converted(model, quantization.default_qconfig, batches)),
        "eager, histogram per channel": (hand, converted(model, per_channel_histogram(), batches)),
        "prepare_fx, unedited, the same": (model, graph),
    }
    calls: dict[str, Any] = {"float": lambda: model(one)} | {name: (lambda m=small: m(one)) for name, (_, small) in results.items()}
    times = measure.interleaved_medians(calls, rounds)
    table = Table("", "SQNR", "size", "batch 1", title=f"MobileNetV2, {size} x {size}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        table.add_row("float", "", measure.megabytes(measure.size_on_disk(model, path)), f"{times['float']:.1f} ms")
        for name, (reference, small) in results.items():
            sqnr = float(compute_sqnr(measure.run_batched(reference, held_out), measure.run_batched(small, held_out)))
            table.add_row(name, f"{sqnr:.1f} dB", measure.megabytes(measure.size_on_disk(small, path)), f"{times[name]:.1f} ms")
        for _, small in results.values():
            mobilenet_v2.check_scripted(small, one, Path(folder))
    console.print(table)
    console.print("scripted and scripted-saved-loaded modules give the same bits", highlight=False)


if __name__ == "__main__":
    main()
