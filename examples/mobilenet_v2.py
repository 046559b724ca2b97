"""MobileNetV2 as torchvision writes it (torch.add, ReLU6, no stubs), quantized twice: min-max per tensor, and by default.

The weights are seeded, not trained, so agreement is judged by the signal-to-noise ratio of the outputs. The result is
scripted, saved and loaded, and gives the same bits each time.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import measure
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import qcompiler
from qcompiler import QConfig, QConfigMapping
from qcompiler.debug import compute_sqnr
from qcompiler.observers import MinMaxObserver
from qcompiler.vision import import_torchvision


def seeded_model() -> nn.Module:
    """Random weights, and BatchNorm statistics that are not the identity."""
    torch.manual_seed(0)
    model: nn.Module = import_torchvision().models.mobilenet_v2(weights=None)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model.eval()


def per_tensor_min_max() -> QConfigMapping:
    """One scale for each whole tensor, from its smallest and largest value: the simplest setting there is."""
    weight = MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
    return QConfigMapping().set_global(QConfig(activation=MinMaxObserver.with_args(dtype=torch.quint8), weight=weight))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="small images, few rounds")
    options = arguments.parse_args()
    size, rounds = (96, 3) if options.quick else (224, 30)
    console = Console()

    model = seeded_model()
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randn(4, 3, size, size, generator=generator) for _ in range(4)]
    held_out = torch.randn(8, 3, size, size, generator=generator)
    expected = measure.run_batched(model, held_out)

    settings = {"min-max per tensor": per_tensor_min_max(), "default": qcompiler.get_default_qconfig_mapping("x86")}
    results: dict[str, nn.Module] = {}
    for name, mapping in settings.items():
        prepared = qcompiler.prepare_fx(model, mapping, (batches[0],))
        qcompiler.calibrate(prepared, batches, progress=False)
        results[name] = qcompiler.convert_fx(prepared)

    one = held_out[:1]
    calls = {"float": lambda: model(one), **{name: (lambda m=module: m(one)) for name, module in results.items()}}
    times = measure.interleaved_medians(calls, rounds)
    table = Table("", "SQNR", "int8 MACs", "size", "batch 1", title=f"MobileNetV2, {size} x {size}")
    with tempfile.TemporaryDirectory() as folder:
        float_size = measure.size_on_disk(model, Path(folder) / "float.pt")
        table.add_row("float", "", "", measure.megabytes(float_size), f"{times['float']:.1f} ms")
        for name, module in results.items():
            path = Path(folder) / "model.qc"
            qcompiler.save(module, str(path))
            sqnr = float(compute_sqnr(expected, measure.run_batched(module, held_out)))
            share = qcompiler.explain(module).int8_mac_share
            table.add_row(name, f"{sqnr:.1f} dB", f"{share:.1%}", measure.megabytes(path.stat().st_size), f"{times[name]:.1f} ms")
        check_copies(results["default"], one, Path(folder))
    console.print(table)
    console.print("loaded, scripted and scripted-saved-loaded modules give the same bits", highlight=False)


def check_copies(module: nn.Module, one: torch.Tensor, folder: Path) -> None:
    """Every way to keep the result gives the same bits. Raises SystemExit where one does not."""
    qcompiler.save(module, str(folder / "copy.qc"))
    refuse_others({"load(save)": qcompiler.load(str(folder / "copy.qc"))}, module, one)
    check_scripted(module, one, folder)


def check_scripted(module: nn.Module, one: torch.Tensor, folder: Path) -> None:
    """So do TorchScript's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit announces its end; it still serves those who deploy with it
        scripted = torch.jit.script(module)
        torch.jit.save(scripted, str(folder / "scripted.pt"))
        refuse_others({"script": scripted, "jit.load(jit.save)": torch.jit.load(str(folder / "scripted.pt"))}, module, one)


def refuse_others(copies: dict[str, nn.Module], module: nn.Module, one: torch.Tensor) -> None:
    with torch.inference_mode():
        wrong = [name for name, copy in copies.items() if not torch.equal(copy(one), module(one))]
    if wrong:
        raise SystemExit(f"not the same bits: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
