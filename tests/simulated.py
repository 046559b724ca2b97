"""A float model with weights and every value in 7 bits: a lower bound of what int8 should reach."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class SevenBits(TorchFunctionMode):
    """Rounds the float result of every torch function to 127 steps of its own range, or of one that is `wider` times as wide: a lower
    bound of what 8 bits should reach."""

    def __init__(self, wider: float = 1.0) -> None:
        super().__init__()
        self.wider = wider

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            return rounded(result, self.wider) if isinstance(result, Tensor) else result


def rounded(x: Tensor, wider: float = 1.0) -> Tensor:
    if not isinstance(x, Tensor) or x.dtype is not torch.float32 or x.numel() < 2 or isinstance(x, nn.Parameter):
        return x
    if not bool(torch.isfinite(x).all()):
        return x
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = max((high - low) * wider / 127, 1e-12)
    zero = round(-low / scale)
    return ((x / scale).round() + zero).clamp(0, 127).sub(zero).mul(scale)


def simulated(model: nn.Module, inputs: tuple[Tensor, ...], form: Mapping[str, Any] | None = None, wider: float = 1.0) -> Any:
    """The model with weights and every value in 7 bits."""
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        if parameter.dim() > 1:
            parameter.data.copy_(rounded(parameter.data, wider))
    with SevenBits(wider):
        return copied(*(rounded(x.clone(), wider) for x in inputs), **(form or {}))
