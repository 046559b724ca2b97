"""Linear layers with fake-quantized weights."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.nn.qat.base import QATModule


class LinearQAT(QATModule):
    """Base of the linear layers: nn.Linear's arguments, then `qconfig`."""

    _ARGUMENTS = ("in_features", "out_features")
    bias: Any

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, qconfig: object = None, device: object = None, dtype: object = None
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._fake_quantize_weight(qconfig, device)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight_fake_quant(self.weight), self.bias)


class Linear(LinearQAT, nn.Linear):
    """nn.Linear with a fake-quantized weight."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.Linear
