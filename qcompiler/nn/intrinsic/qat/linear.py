"""Linear layers with the BatchNorm or ReLU behind them as one module, with fake-quantized weights."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.nn import intrinsic
from qcompiler.nn.intrinsic.qat.batch_norm import BatchNormQAT, ReLUBehind
from qcompiler.nn.qat import Linear
from qcompiler.nn.qat.linear import LinearQAT


class LinearReLU(ReLUBehind, Linear):
    """nn.Linear and nn.ReLU with a fake-quantized weight."""

    _FLOAT_MODULE = intrinsic.LinearReLU
    _FOLDED_MODULE = intrinsic.LinearReLU


class LinearBn1d(BatchNormQAT, nn.Linear):
    """nn.Linear and nn.BatchNorm1d, trained as one with a fake-quantized folded weight. Takes (batch, features)."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = intrinsic.LinearBn1d
    _ARGUMENTS = LinearQAT._ARGUMENTS

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        eps: float = 1e-05,
        momentum: float | None = 0.1,
        freeze_bn: bool = False,
        qconfig: object = None,
        device: object = None,
        dtype: object = None,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        self._start_batch_norm(nn.BatchNorm1d(out_features, eps, momentum, device=device, dtype=dtype), freeze_bn, qconfig, device)

    def forward(self, input: Tensor) -> Tensor:
        return self._batch_norm(F.linear, input)
