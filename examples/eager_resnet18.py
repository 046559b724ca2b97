"""ResNet18 by eager quantization, put right.

A script that circulates fuses ["conv1", "bn1", "relu"] and ["layer1.0.conv1", "layer1.0.bn1", "layer1.0.relu"] of torchvision's
resnet18, prepares and converts. It has three faults, and each is an error here that names what is missing: no QuantStub, no
calibration, and a block's only ReLU fused away although the block calls it twice. This is the script with them mended:

* every block gets a second ReLU, and a FloatFunctional for its sum;
* a QuantStub on the input, a DeQuantStub on the result;
* calibration between prepare and convert.

`examples/resnet18.py` does the same by prepare_fx, on the unedited model.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import measure
import photos
import resnet18
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import qcompiler
import qcompiler.quantization as quantization
from qcompiler.debug import compute_sqnr
from qcompiler.errors import QCompilerError
from qcompiler.nn.quantized import FloatFunctional
from qcompiler.vision import import_torchvision

FAULTY = [["conv1", "bn1", "relu"], ["layer1.0.conv1", "layer1.0.bn1", "layer1.0.relu"]]


class Block(nn.Module):
    """torchvision's BasicBlock with a ReLU of its own for the first convolution, and the sum with its ReLU as one operation."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = block.conv1, block.bn1, nn.ReLU()
        self.conv2, self.bn2 = block.conv2, block.bn2
        self.downsample = block.downsample if block.downsample is not None else nn.Identity()
        self.sum = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        return self.sum.add_relu(self.bn2(self.conv2(out)), self.downsample(x))


class HandEdited(nn.Module):
    """The edited network: floats in, floats out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.conv1, self.bn1, self.relu, self.maxpool = model.conv1, model.bn1, model.relu, model.maxpool
        layers = (model.layer1, model.layer2, model.layer3, model.layer4)
        self.layers = nn.Sequential(*(nn.Sequential(*map(Block, layer)) for layer in layers))
        self.avgpool, self.fc = model.avgpool, model.fc

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.quant(x)))))
        x = self.avgpool(self.layers(x))
        return self.dequant(self.fc(torch.flatten(x, 1)))

    def chains(self) -> list[list[str]]:
        """What fuses: conv, bn, relu and conv, bn."""
        found = [["conv1", "bn1", "relu"]]
        for path, module in self.named_modules():
            if isinstance(module, Block):
                found += [[f"{path}.conv1", f"{path}.bn1", f"{path}.relu1"], [f"{path}.conv2", f"{path}.bn2"]]
                found += [[f"{path}.downsample.0", f"{path}.downsample.1"]] if isinstance(module.downsample, nn.Sequential) else []
        return found


def faults(x: Tensor) -> list[str]:
    """What the faulty script is told, step by step."""
    model = quantization.fuse_modules(import_torchvision().models.resnet18(weights=None).eval(), FAULTY)
    model.qconfig = quantization.get_default_qconfig("x86")  # type: ignore[assignment]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        prepared = quantization.prepare(model)
    told = [str(warning.message).split(". ")[0] for warning in seen]
    for step in (lambda: quantization.convert(prepared), lambda: prepared(x)):
        try:
            step()
        except QCompilerError as error:
            told.append(error.message)
    return told


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="small images, few rounds")
    options = arguments.parse_args()
    size, rounds = (96, 3) if options.quick else (224, 30)
    console = Console()

    known = resnet18.preprocess([part for photo in photos.CALIBRATION for part in resnet18.quarters(photos.open_photo(photo))], size)
    fresh = resnet18.preprocess([part for photo in photos.EVALUATION for part in resnet18.quarters(photos.open_photo(photo))], size)
    console.print("the faulty script is told:", *faults(fresh[:1]), sep="\n- ", highlight=False)

    model = HandEdited(resnet18.build(None)).eval()
    small = quantization.fuse_modules(model, model.chains())
    small.qconfig = quantization.get_default_qconfig("x86")  # type: ignore[assignment]
    prepared = quantization.prepare(small)
    qcompiler.calibrate(prepared, known.split(4))
    small = quantization.convert(prepared)

    expected, got, one = measure.run_batched(model, fresh), measure.run_batched(small, fresh), fresh[:1]
    times = measure.interleaved_medians({"float": lambda: model(one), "int8": lambda: small(one)}, rounds)
    table = Table(title=f"ResNet18, edited by hand, {size} x {size}", show_header=False)
    table.add_row("same class as float", f"{measure.agreement(expected, got):.1%} of {len(fresh)}")
    table.add_row("SQNR", f"{float(compute_sqnr(expected, got)):.1f} dB")
    table.add_row("multiply-accumulates in int8", f"{qcompiler.explain(small).int8_mac_share:.1%}")
    table.add_row("batch 1", f"float {times['float']:.1f} ms, int8 {times['int8']:.1f} ms")
    console.print(table)


if __name__ == "__main__":
    main()
