"""Every torchvision constructor through the compiler: `python -m tests.sweep [NAME ...]` prints a line a model.

Prepares, calibrates, converts, runs, and reports SQNR against float, the share of multiply-accumulates in int8 and the modules
kept as float leaves; fails where a node has no provenance, or what stays float or was not fused has no remark (examine.py). A
zero-initialized head (ViT) gets seeded weights, else there is no signal to compare.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.debug import compute_sqnr
from qcompiler.vision import import_torchvision
from tests import zoo
from tests.examine import examine

SKIP = ("quantized_", "raft_")
DETECTION = ("fasterrcnn", "maskrcnn", "keypointrcnn", "retinanet", "ssd", "fcos")


def names() -> list[str]:
    models = import_torchvision().models
    return [n for n in models.list_models() if not n.startswith(SKIP)]


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model (of a detector its backbone) and one example."""
    torchvision = import_torchvision()
    torch.manual_seed(0)
    options: dict[str, Any] = {"weights": None}
    if name.startswith(DETECTION) or hasattr(torchvision.models.segmentation, name):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    model = zoo.seeded(torchvision.models.get_model(name, **options))
    for linear in (m for m in model.modules() if isinstance(m, nn.Linear)):
        if not bool(linear.weight.any()):
            nn.init.normal_(linear.weight, std=0.02)
    return (model.backbone if name.startswith(DETECTION) else model).eval(), example(name, torchvision)


def example(name: str, torchvision: Any) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(2)
    if hasattr(torchvision.models.video, name):
        side = 224 if "mvit" in name or "s3d" in name else 112
        return (torch.randn(1, 3, 16, side, side, generator=g),)
    size = {"inception_v3": 299, "ssd300_vgg16": 300}.get(name, 224)
    return (torch.randn(1, 3, size, size, generator=g),)


def sweep(name: str) -> str:
    model, x = build(name)
    with torch.no_grad():
        reference = model(*x)
        start = time.time()
        module = examine(model, *x)
        seconds = time.time() - start
        sqnr = compute_sqnr(reference, module(*x))
    leaves = [r.where.module_path for r in qcompiler.remarks(module) if r.code == "leaf"]
    return f"{sqnr:6.1f} dB  {qcompiler.explain(module).int8_mac_share:6.1%} int8  {seconds:5.1f} s  float leaves: {leaves[:4]}"


def main() -> None:
    warnings.filterwarnings("ignore")
    failed = 0
    wanted = sys.argv[1:] or names()
    for name in wanted:
        try:
            print(f"{name:36s} {sweep(name)}", flush=True)
        except Exception as error:  # a sweep reports every model
            failed += 1
            print(f"{name:36s} FAILED {type(error).__name__}: {str(error)[:200]}", flush=True)
    print(f"{len(wanted) - failed} of {len(wanted)} converted and ran")


if __name__ == "__main__":
    main()
