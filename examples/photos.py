"""Real photos for the demo: seeded crops of the pictures that scikit-image and scikit-learn ship.

Calibration and evaluation use different photos. A crop is (3, size, size), RGB, (pixel - 127) / 128, as EfficientNet-Lite was
trained on.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

Photo = tuple[str, str]  # package, path within it

CALIBRATION: tuple[Photo, ...] = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/hubble_deep_field.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
)
EVALUATION: tuple[Photo, ...] = (
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/rocket.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)
MEAN, STD = 127.0, 128.0


def open_photo(photo: Photo) -> Image.Image:
    """The photo in RGB. The package is located, not imported: scikit-learn takes a second to import."""
    package, path = photo
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed: pip install -e '.[demo]'")
    return Image.open(Path(spec.origin).parent / path).convert("RGB")


def to_tensor(image: Image.Image, size: int = 224, mirror: bool = False) -> torch.Tensor:
    """(3, size, size), normalized."""
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32)
    if mirror:
        pixels = pixels[:, ::-1]
    return torch.from_numpy(((pixels - MEAN) / STD).copy()).permute(2, 0, 1)


def to_image(crop: torch.Tensor) -> Image.Image:
    """The inverse of `to_tensor`."""
    return Image.fromarray((crop.permute(1, 2, 0) * STD + MEAN).round().clamp(0, 255).to(torch.uint8).numpy())


def crops(photos: Sequence[Photo], count: int, size: int = 224, seed: int = 0) -> torch.Tensor:
    """(count, 3, size, size): square crops of the photos in turn, at least half as large as the short side, half of them mirrored."""
    random = np.random.RandomState(seed)
    images = [open_photo(photo) for photo in photos]
    cut = []
    for i in range(count):
        image = images[i % len(images)]
        side = int(min(image.size) * random.uniform(0.5, 1))
        left, top = random.randint(0, image.width - side + 1), random.randint(0, image.height - side + 1)
        window = image.crop((left, top, left + side, top + side))
        cut.append(to_tensor(window, size, mirror=random.rand() < 0.5))
    return torch.stack(cut)


def split(calibration: int = 64, evaluation: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """The two disjoint sets that the figures in the README are measured on."""
    return crops(CALIBRATION, calibration, seed=1), crops(EVALUATION, evaluation, seed=2)
