"""Nets that users bring, of packages that are no dependencies, for `python -m tests.sweep --zoo users`: segmentation, detection, medical,
speech, diffusion.

A name is `package:net`. Packages that are not installed are left out. Weights are seeded; nothing is downloaded.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.errors import ConfigError
from qcompiler.vision import import_torchvision
from tests import zoo

SEGMENTATION = ("Unet", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "UPerNet", "Segformer")
YOLO = ("yolov8n", "yolov5n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolov8n-seg", "yolov8n-pose")
MONAI: dict[str, tuple[Callable[[Any], nn.Module], tuple[int, ...]]] = {
    "unet2": (lambda n: n.UNet(2, 1, 2, (8, 16, 32), (2, 2), num_res_units=2), (1, 1, 64, 64)),
    "unet3": (lambda n: n.UNet(3, 1, 2, (8, 16, 32), (2, 2), num_res_units=1), (1, 1, 32, 32, 32)),
    "basicunet": (lambda n: n.BasicUNet(2, 1, 2, (8, 8, 16, 16, 32, 8)), (1, 1, 64, 64)),
    "basicunetpp": (lambda n: n.BasicUNetPlusPlus(2, 1, 2, (8, 8, 16, 16, 32, 8)), (1, 1, 64, 64)),
    "segresnet": (lambda n: n.SegResNet(2, 8, 1, 2), (1, 1, 64, 64)),
    "segresnetds": (lambda n: n.SegResNetDS(2, 8, 1, 2), (1, 1, 64, 64)),
    "vnet": (lambda n: n.VNet(2, 1, 2), (1, 1, 64, 64)),
    "unetr": (lambda n: n.UNETR(1, 2, (32, 32), 8, 48, 96, 4, spatial_dims=2), (1, 1, 32, 32)),
    "swinunetr": (lambda n: n.SwinUNETR(in_channels=1, out_channels=2, feature_size=12, spatial_dims=2), (1, 1, 64, 64)),
}  # fmt: skip
AUDIO: dict[str, tuple[Callable[[Any], nn.Module], Callable[[torch.Generator], tuple[Tensor, ...]]]] = {
    "conformer": (lambda m: m.Conformer(40, 4, 64, 2, 7), lambda g: (torch.randn(2, 30, 40, generator=g), torch.tensor([30, 30]))),
    "emformer": (lambda m: m.Emformer(32, 4, 64, 2, 4, right_context_length=1),
                 lambda g: (torch.randn(2, 17, 32, generator=g), torch.tensor([16, 16]))),
    "wav2letter": (lambda m: m.Wav2Letter(10, "mfcc", 13), lambda g: (torch.randn(1, 13, 100, generator=g),)),
    "deepspeech": (lambda m: m.DeepSpeech(20, 64, 10), lambda g: (torch.randn(1, 1, 30, 20, generator=g),)),
    "convtasnet": (lambda m: m.ConvTasNet(2, 8, 32, 3, 16, 32, 3, 2), lambda g: (torch.randn(1, 1, 400, generator=g),)),
}  # fmt: skip
PACKAGES = {"segmentation_models_pytorch": SEGMENTATION, "ultralytics": YOLO, "monai": tuple(MONAI), "torchaudio": tuple(AUDIO),
            "diffusers": ("unet2d",)}  # fmt: skip


def names() -> list[str]:
    found = [f"{package}:{net}" for package, nets in PACKAGES.items() if importlib.util.find_spec(package) for net in nets]
    if not found:
        raise ConfigError("none of the packages is installed", code="no-package", hint=f"pip install one of {', '.join(PACKAGES)}")
    return found


def build(name: str, pixels: int | None = None) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The net and one example, images of so many pixels a side where it takes any."""
    import_torchvision()
    package, _, net = name.partition(":")
    torch.manual_seed(0)
    shape: tuple[int, ...] = (1, 3, pixels or 128, pixels or 128)
    if package == "torchaudio":
        make_audio, given = AUDIO[net]
        return zoo.seeded(make_audio(importlib.import_module("torchaudio.models"))), given(torch.Generator().manual_seed(2))
    if package == "diffusers":
        return diffusion(), (torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)), torch.tensor([7]))
    if package == "monai":
        make, shape = MONAI[net]
        model = make(importlib.import_module("monai.networks.nets"))
    elif package == "ultralytics":
        model = importlib.import_module("ultralytics").YOLO(f"{net}.yaml").model
    else:
        model = getattr(importlib.import_module(package), net)("resnet18", encoder_weights=None, classes=3)
    return zoo.seeded(model), (torch.randn(*shape, generator=torch.Generator().manual_seed(2)),)


def diffusion() -> nn.Module:
    """A small denoiser, attention in its inner blocks."""
    blocks: dict[str, Any] = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    unet: nn.Module = importlib.import_module("diffusers").UNet2DModel(
        32, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8, **blocks
    )
    return unet.eval()
