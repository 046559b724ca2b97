"""The models and inputs of the tests: torchvision architectures with seeded weights, so that figures can be compared."""

from __future__ import annotations

import re

import torch
from torch import nn

from qcompiler.vision import import_torchvision

_EXTRA = {name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")}


def load(name: str) -> nn.Module:
    """The torchvision model `name` in eval mode, weights from seed 0; BatchNorm statistics such that folding them shows."""
    torch.manual_seed(0)
    model: nn.Module = getattr(import_torchvision().models, name)(weights=None, **_EXTRA.get(name, {}))
    return seeded(model)


def few(name: str) -> nn.Module:
    """As `load`, with two of the equal blocks that follow each other: all kinds of its layers and joints, in a fraction of the time."""
    torch.manual_seed(0)
    models = import_torchvision().models
    if name == "densenet121":  # each of its layers takes what all before it gave
        return seeded(models.DenseNet(block_config=(2, 2, 2, 2)))
    model: nn.Module = getattr(models, name)(weights=None, **_EXTRA.get(name, {}))
    for row in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        before: list[str] = []
        for child, block in list(row.named_children()):
            before.append(_form(block))
            if list(block.children()) and before[-3:] == [before[-1]] * 3:
                delattr(row, child)
    return seeded(model)


def _form(block: nn.Module) -> str:
    """Equal for blocks of one structure: stochastic depth has another rate in each."""
    return re.sub("p=[0-9.]+", "", repr(block))


def seeded(model: nn.Module) -> nn.Module:
    """The model with BatchNorm statistics such that folding them shows, in eval mode."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model.eval()


def inputs(batch: int = 1, size: int = 224, n: int = 8) -> list[torch.Tensor]:
    """n seeded batches of shape (batch, 3, size, size)."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(batch, 3, size, size, generator=generator) for _ in range(n)]
