"""The models and inputs of the tests: torchvision architectures with seeded weights, so that figures can be compared."""

from __future__ import annotations

import torch
from torch import nn

from qcompiler.vision import import_torchvision

_EXTRA = {name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")}


def load(name: str) -> nn.Module:
    """The torchvision model `name` in eval mode, weights from seed 0; BatchNorm statistics such that folding them shows."""
    torch.manual_seed(0)
    model: nn.Module = getattr(import_torchvision().models, name)(weights=None, **_EXTRA.get(name, {}))
    return seeded(model)


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
