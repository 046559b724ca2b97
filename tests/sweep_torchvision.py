"""The models of torchvision for `python -m tests.sweep`: every constructor, weights seeded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.vision import import_torchvision
from tests import zoo

SKIP = ("quantized_", "raft_")
FIXED = ("vit_", "maxvit", "ssd300")  # take one size
SMALLEST = {"inception_v3": 96}
DETECTION = ("fasterrcnn", "maskrcnn", "keypointrcnn", "retinanet", "ssd", "fcos")


def names() -> list[str]:
    models = import_torchvision().models
    return [n for n in models.list_models() if not n.startswith(SKIP)]


def build(name: str, pixels: int | None = None) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model (of a detector its backbone) and one example, of so many pixels a side where the model takes any."""
    torchvision = import_torchvision()
    torch.manual_seed(0)
    options: dict[str, Any] = {"weights": None}
    if name.startswith(DETECTION) or hasattr(torchvision.models.segmentation, name):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    model = zoo.seeded(torchvision.models.get_model(name, **options))
    for linear in (m for m in model.modules() if isinstance(m, nn.Linear)):
        if not bool(linear.weight.any()):  # the head of ViT starts at zero: no signal to compare
            nn.init.normal_(linear.weight, std=0.02)
    return (model.backbone if name.startswith(DETECTION) else model).eval(), example(name, torchvision, pixels)


def example(name: str, torchvision: Any, pixels: int | None) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(2)
    if hasattr(torchvision.models.video, name):
        side = 224 if "mvit" in name or "s3d" in name else pixels or 112
        return (torch.randn(1, 3, 16, side, side, generator=g),)
    size = {"inception_v3": 299, "ssd300_vgg16": 300}.get(name, 224)
    if pixels and not name.startswith(FIXED):
        size = max(pixels, SMALLEST.get(name, 0))
    return (torch.randn(1, 3, size, size, generator=g),)
