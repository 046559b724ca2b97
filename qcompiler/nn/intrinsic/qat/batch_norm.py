"""What QAT modules with a BatchNorm have in common: they train as convolution + BatchNorm, with the folded weight fake-quantized."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qcompiler.errors import ConfigError
from qcompiler.nn.qat.base import QATModule
from qcompiler.ops.batch_norm import Layout, Norm, fold
from qcompiler.qat import FreezableBatchNorm
from qcompiler.qat.conv_bn import Call, ConvBn


class BatchNormQAT(QATModule, FreezableBatchNorm):
    """Base of QAT modules that hold a BatchNorm, `bn` (qat/conv_bn.py says how they train).

    In train mode statistics are those of the batch, and the running ones move, unless `freeze_bn_stats`; then, and in eval mode,
    the folded convolution is computed. `bn` may be a SyncBatchNorm.
    """

    _WEIGHT_AXIS: ClassVar[int] = 0
    bias: Any
    bn: Any
    freeze_bn: bool

    def _start_batch_norm(self, bn: nn.Module, freeze_bn: bool, qconfig: object, device: object) -> None:
        self.bn = bn
        self._fake_quantize_weight(qconfig, device)
        if freeze_bn:
            self.freeze_bn_stats()

    @classmethod
    def _extra(cls, parts: tuple[nn.Module, ...]) -> dict[str, object]:
        bn: Any = parts[1]
        if bn.running_mean is None:
            raise ConfigError(f"the {type(bn).__name__} keeps no running statistics, so it cannot be folded", code="batch-norm",
                              hint="track_running_stats=True, or leave it unfused")  # fmt: skip
        return {"eps": bn.eps, "momentum": bn.momentum, "freeze_bn": not bn.training and parts[0].training}

    def _take(self, parts: tuple[nn.Module, ...]) -> None:
        self.bn = parts[1]

    def _norm(self) -> tuple[Norm, Layout]:
        bn = self.bn
        return Norm(bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.eps), Layout(self._WEIGHT_AXIS, getattr(self, "groups", 1))

    def _batch_norm(self, call: Call, x: Tensor) -> Tensor:
        both = ConvBn(call, self.weight_fake_quant, *self._norm())
        if self.bn.training:
            return self.bn(both.unnormalized(x, self.weight, self.bias))  # type: ignore[no-any-return]
        return both.folded(x, self.weight, self.bias)

    @torch.no_grad()
    def deployed(self) -> tuple[Tensor, Tensor | None]:
        """(folded weight, folded bias), in the arithmetic of `forward`: the last bit can decide how the largest weight is rounded."""
        return fold(self.weight, self.bias, *self._norm())

    def reset_running_stats(self) -> None:
        """Forget the running statistics."""
        self.bn.reset_running_stats()

    def reset_bn_parameters(self) -> None:
        """BatchNorm as it was made: no statistics, gamma 1, beta 0."""
        self.bn.reset_parameters()


class ReLUBehind:
    """Mixed into a QAT module: a ReLU behind its result."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return nn.functional.relu(super().forward(*args, **kwargs))  # type: ignore[misc]
