"""Model inputs from files: images, .npy arrays and .pt tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch.utils._pytree import tree_map_only

from qcompiler.errors import CalibrationError, ConfigError, InputError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
ARRAYS = frozenset({".npy", ".pt", ".pth"})
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGE_HINT = "an image is given as 3 x {size} x {size}: --size, --mean and --std say how; other inputs: .npy and .pt files"
ARRAY_HINT = "an array file is one batch as it stands, inputs along its first dimension; several arguments: a .pt file with a tuple or dict"


@dataclass(frozen=True)
class Preprocess:
    """From a photo to (3, size, size): short side to `size / crop`, the middle, then (pixel / 255 - mean) / std."""

    size: int = 224
    crop: float = 0.875  # 224 of 256: what most classifiers are evaluated with
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @staticmethod
    def of(size: int, mean: str, std: str) -> Preprocess:
        """From the options of the command line: numbers with commas between. Raises ConfigError."""
        try:
            channels = [tuple(float(v) for v in text.split(",")) for text in (mean, std)]
        except ValueError as error:
            raise ConfigError(f"--mean and --std are numbers with commas between: {error}", code="preprocess") from error
        if any(len(c) not in (1, 3) for c in channels) or 0.0 in channels[1]:
            raise ConfigError("--mean and --std take one or three numbers; no std is 0", code="preprocess")
        return Preprocess(size=size, mean=channels[0], std=channels[1])

    def __call__(self, image: Image) -> torch.Tensor:
        short = round(self.size / self.crop)
        ratio = short / min(image.size)
        width, height = max(short, round(image.width * ratio)), max(short, round(image.height * ratio))
        left, top = (width - self.size) // 2, (height - self.size) // 2
        scaled = image.convert("RGB").resize((width, height), 2)  # 2: bilinear
        pixels = np.asarray(scaled.crop((left, top, left + self.size, top + self.size)), dtype=np.float32) / 255
        return ((torch.from_numpy(pixels) - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(2, 0, 1).contiguous()


def read_image(path: Path, preprocess: Preprocess) -> torch.Tensor:
    """(1, 3, size, size). Raises InputError when the file is not an image."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ConfigError("reading images needs Pillow", code="no-pillow", hint="pip install 'qcompiler[vision]'") from error
    try:
        with Image.open(path) as image:
            return preprocess(image).unsqueeze(0)
    except OSError as error:
        hint = "take it out of the folder, or mend it"
        raise InputError(f"cannot read the image {path}: {error}", code="unreadable-input", hint=hint) from error


def read_array(path: Path) -> Any:
    """What a .npy or .pt file holds: a tensor, or a tuple, list or dict of tensors; doubles become float32. No file is unpickled."""
    try:
        held = torch.from_numpy(np.load(path, allow_pickle=False)) if path.suffix == ".npy" else _load(path)
        return tree_map_only(torch.Tensor, lambda x: x.float() if x.dtype is torch.float64 else x, held)
    except Exception as error:  # numpy and torch raise whatever the file makes them raise
        first_line = str(error).split("\n")[0]
        raise InputError(f"cannot read {path}: {first_line}", code="unreadable-input") from error


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def about_files(images: bool, size: int) -> Iterator[None]:
    """Tells in the hint of an InputError what inputs are made of the files, and which option changes that."""
    try:
        yield
    except InputError as error:
        if error.code in ("input", "input-shape", "input-type", "input-arguments"):
            error.hint = IMAGE_HINT.format(size=size) if images else ARRAY_HINT
        raise


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES


def read_input(path: Path, preprocess: Preprocess) -> Any:
    """One input of a model from an image, .npy or .pt file."""
    if not path.is_file():
        raise InputError(f"there is no file {path}", code="no-input")
    if is_image(path):
        return read_image(path, preprocess)
    if path.suffix.lower() in ARRAYS:
        return read_array(path)
    raise InputError(f"cannot tell what {path.name} holds", code="unreadable-input", hint=f"known: {known_suffixes()}")


def known_suffixes() -> str:
    return " ".join(sorted(IMAGES | ARRAYS))


@dataclass(frozen=True)
class Batches:
    """The calibration batches of a folder or file; can be walked any number of times.

    Images are preprocessed and stacked, `batch` at a time. Each array file is one batch as it stands; a list in a .pt file
    is a list of batches.
    """

    files: tuple[Path, ...]
    preprocess: Preprocess
    batch: int

    @property
    def images(self) -> bool:
        return is_image(self.files[0])

    def __len__(self) -> int:
        return -(-len(self.files) // self.batch) if self.images else len(self.files)

    def __iter__(self) -> Iterator[Any]:
        if self.images:
            for start in range(0, len(self.files), self.batch):
                yield torch.cat([read_image(file, self.preprocess) for file in self.files[start : start + self.batch]])
            return
        for file in self.files:
            held = read_array(file)
            if isinstance(held, list):
                yield from held
            else:
                yield held


def held_out(batches: Batches, least: int = 10, part: int = 5) -> tuple[Batches, Batches | None]:
    """What to calibrate on, and every fifth file to judge by; of fewer than ten files all calibrate."""
    if len(batches.files) < least:
        return batches, None
    kept = tuple(file for i, file in enumerate(batches.files) if i % part != part - 1)
    return replace(batches, files=kept), replace(batches, files=tuple(file for file in batches.files if file not in kept))


def _under(folder: Path) -> list[Path]:
    """The files in a folder and in those that it holds."""

    def failed(error: OSError) -> NoReturn:
        raise CalibrationError(f"cannot list {error.filename}: {error.strerror}", code="no-calibration-data",
                               hint="calibrate on a folder that nobody changes, and that you may read") from error  # fmt: skip

    return sorted(Path(where, name) for where, _, names in os.walk(folder, onerror=failed) for name in names if Path(where, name).is_file())


def find_batches(path: Path, preprocess: Preprocess, batch: int = 8, limit: int = 256) -> Batches:
    """The first `limit` usable files under `path` in order of name, or the file itself.

    Raises CalibrationError when there is nothing to calibrate on, or a folder that cannot be listed.
    """
    if not path.exists():
        raise CalibrationError(f"there is no {path}", code="no-calibration-data")
    files = _under(path) if path.is_dir() else [path]
    for kind in (IMAGES, ARRAYS):
        if usable := tuple(p for p in files if p.suffix.lower() in kind)[:limit]:
            return Batches(usable, preprocess, batch)
    raise CalibrationError(f"{path} holds neither images nor arrays", code="no-calibration-data", hint=f"known: {known_suffixes()}")
