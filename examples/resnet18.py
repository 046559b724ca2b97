"""ResNet18 with the usual preprocessing of photos (Resize 256, CenterCrop 224, normalize) and argmax.

The network is what is quantized; preprocessing stays before it and argmax after it. torchvision's weights need a
download, so by default they are seeded and a class means nothing; pass --weights FILE for trained ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import measure
import photos
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn

import qcompiler
from qcompiler.cli.data import Preprocess
from qcompiler.debug import compute_sqnr
from qcompiler.vision import import_torchvision


def build(weights: Path | None) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = import_torchvision().models.resnet18(weights=None)
    if weights is not None:
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()


def preprocess(images: list[Image.Image], size: int) -> torch.Tensor:
    """(n, 3, size, size): short side to 256/224 of size, the middle, ImageNet's mean and deviation."""
    return torch.stack([Preprocess(size)(image) for image in images])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--weights", type=Path, help="a state_dict of torchvision's resnet18")
    arguments.add_argument("--quick", action="store_true", help="small images, few rounds")
    options = arguments.parse_args()
    size, rounds = (96, 3) if options.quick else (224, 30)
    console = Console()

    model = build(options.weights)
    # The whole photos and quarters of them: a few typical inputs.
    known = preprocess([part for photo in photos.CALIBRATION for part in quarters(photos.open_photo(photo))], size)
    fresh = preprocess([part for photo in photos.EVALUATION for part in quarters(photos.open_photo(photo))], size)

    small = qcompiler.quantize(model, known.split(4), progress=console.is_terminal)
    expected, got = measure.run_batched(model, fresh), measure.run_batched(small, fresh)
    one = fresh[:1]
    times = measure.interleaved_medians({"float": lambda: model(one), "int8": lambda: small(one)}, rounds)

    classes = Table("photo", "float", "int8", title="argmax")
    for (_, path), a, b in zip(photos.EVALUATION, expected[::5].argmax(1).tolist(), got[::5].argmax(1).tolist(), strict=True):
        classes.add_row(Path(path).name, str(a), str(b))
    console.print(classes)
    table = Table(title=f"ResNet18, {size} x {size}", show_header=False)
    table.add_row("same class as float", f"{measure.agreement(expected, got):.1%} of {len(fresh)}")
    table.add_row("SQNR", f"{float(compute_sqnr(expected, got)):.1f} dB")
    table.add_row("multiply-accumulates in int8", f"{qcompiler.explain(small).int8_mac_share:.1%}")
    table.add_row("batch 1", f"float {times['float']:.1f} ms, int8 {times['int8']:.1f} ms")
    console.print(table)


def quarters(image: Image.Image) -> list[Image.Image]:
    """The image and its four quarters."""
    x, y = image.width // 2, image.height // 2
    corners = ((0, 0), (x, 0), (0, y), (x, y))
    return [image, *(image.crop((left, top, left + x, top + y)) for left, top in corners)]


if __name__ == "__main__":
    main()
