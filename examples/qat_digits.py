"""Quantization-aware training on scikit-learn's digits: float, post-training and trained int8 accuracies, at 8 and 4 bits of weight.

    python examples/qat_digits.py            # about a minute on one core
    python examples/qat_digits.py --quick    # a few seconds, a few points less

A small network with what real ones have: BatchNorm, a depthwise convolution, a residual sum, an average pool. Nothing in it is
written for quantization. The 4-bit rows keep weights in -8..7 (stored as int8), where rounding after training costs accuracy
and training with it wins most of it back.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from qcompiler import QConfig, QConfigMapping, calibrate, convert_fx, prepare_fx, prepare_qat_fx
from qcompiler.debug import parity
from qcompiler.fake_quantize import (
    FakeQuantizeBase,
    default_fused_act_fake_quant,
    default_fused_per_channel_wt_fake_quant,
    disable_observer,
)
from qcompiler.observers import MinMaxObserver, default_per_channel_weight_observer
from qcompiler.qat import freeze_bn_stats


class Digits(nn.Module):
    """8 x 8 grey images to 10 classes; 5,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.point = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.down = nn.Sequential(nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.head = nn.Linear(24 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.point(self.depthwise(x)))
        return self.head(F.avg_pool2d(self.down(x), 2).flatten(1))


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images (N, 1, 8, 8) in 0..1 with their labels; every fourth image is a test image."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(found.target)
    test = torch.arange(len(labels)) % 4 == 0
    return images[~test], labels[~test], images[test], labels[test]


def batches(images: Tensor, labels: Tensor, seed: int, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    for part in order.split(size):
        if len(part) == size:
            yield images[part], labels[part]


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, rate: float) -> float:
    """SGD with a cosine schedule; returns the last loss. Of a fake-quantized model, ranges and BatchNorms freeze for the last third.

    The model may be of either flow: prepare_qat_fx, or prepare_qat by hand.
    """
    quantized = any(isinstance(module, FakeQuantizeBase) for module in model.modules())
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    loss = torch.zeros(())
    for epoch in range(epochs):
        model.train()
        if quantized and epoch >= epochs * 2 / 3:
            model.apply(disable_observer).apply(freeze_bn_stats)
        for x, y in batches(images, labels, epoch):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        schedule.step()
    return loss.item()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent."""
    with torch.no_grad():
        return 100 * float((model(images).argmax(1) == labels).float().mean())


def post_training(bits: int) -> QConfigMapping:
    weight = default_per_channel_weight_observer
    if bits < 8:
        weight = weight.with_args(quant_min=-(2 ** (bits - 1)), quant_max=2 ** (bits - 1) - 1)
    return QConfigMapping().set_global(QConfig(MinMaxObserver, weight))


def training(bits: int) -> QConfigMapping:
    weight = default_fused_per_channel_wt_fake_quant.with_args(quant_min=-(2 ** (bits - 1)), quant_max=2 ** (bits - 1) - 1)
    return QConfigMapping().set_global(QConfig(default_fused_act_fake_quant, weight))


def trained(quick: bool = False) -> Digits:
    """The float network, in eval mode."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Digits()
    train(model, *data()[:2], epochs=6 if quick else 20, rate=0.05)
    return model.eval()


def compare(model: Digits, quick: bool = False) -> dict[str, float]:
    """Quantizes and tunes copies of a trained network, prints the table, returns the accuracies in percent."""
    images, labels, test_images, test_labels = data()
    found = {"float": accuracy(model, test_images, test_labels)}
    table = Table(title="digits: accuracy on 450 test images")
    for header in ("weights", "float", "post-training", "trained (QAT)", "int8 against fake-quantized"):
        table.add_column(header, justify="right")
    for bits in (8, 4):
        prepared = prepare_fx(model, post_training(bits), images[:1])
        calibrate(prepared, list(images[:512].split(64)))
        found[f"ptq{bits}"] = accuracy(convert_fx(prepared), test_images, test_labels)

        tuned = prepare_qat_fx(copy.deepcopy(model).train(), training(bits), images[:1])
        train(tuned, images, labels, epochs=3 if quick else 9, rate=0.01)
        converted = convert_fx(tuned)
        found[f"qat{bits}"] = accuracy(converted, test_images, test_labels)
        found[f"same{bits}"], found[f"steps{bits}"] = agreement(tuned, converted, test_images)
        table.add_row(f"{bits} bits", *(f"{found[name]:.1f} %" for name in ("float", f"ptq{bits}", f"qat{bits}")),
                      f"{found[f'steps{bits}']:g} steps, {found[f'same{bits}']:.1f} % same class")  # fmt: skip
    Console().print(table)
    return found


def agreement(prepared: nn.Module, converted: nn.Module, images: Tensor) -> tuple[float, float]:
    """Percent of images with the same class as the fake-quantized model in eval mode, and the largest difference in steps."""
    prepared.eval().apply(disable_observer)
    with torch.no_grad():
        same = 100 * float((prepared(images).argmax(1) == converted(images).argmax(1)).float().mean())
    return same, parity(prepared, converted, images).worst


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    quick = parser.parse_args().quick
    compare(trained(quick), quick)
