"""nn.quantized.Linear."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import nn

from qcompiler.errors import ConfigError
from qcompiler.nn import qat
from qcompiler.nn.float_classes import FloatClasses
from qcompiler.nn.intrinsic import qat as trained
from qcompiler.nn.quantized.from_float import Parts
from qcompiler.nn.quantized.weighted import WeightedModule


class Linear(WeightedModule):
    """y = x W^T + b on a quint8 tensor (..., in_features), int8 weight (out_features, in_features), float bias."""

    _FLOAT_MODULE: ClassVar[FloatClasses] = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
    _QAT_MODULE: ClassVar[object] = (qat.Linear, trained.LinearBn1d)
    _OP, _BASE = "linear", nn.Linear
    _INPUTS = ("x",)
    _RANKS, _RANK_OR_MORE = (2, 1), True

    def __init__(self, in_features: int, out_features: int, bias_: bool = True, dtype: torch.dtype = torch.qint8) -> None:
        """Weights of zero; `bias_` False: none. Raises ConfigError for a weight dtype other than qint8."""
        if dtype is not torch.qint8:
            raise ConfigError(f"a quantized Linear has a torch.qint8 weight, not {dtype}", code="weight-dtype")
        super().__init__((out_features, in_features), out_features if bias_ else None)
        self.in_features, self.out_features = in_features, out_features
        self.rebuild()

    @classmethod
    def _like(cls, parts: Parts) -> Self:
        base: Any = parts.base
        return cls(base.in_features, base.out_features, base.bias is not None or parts.norm is not None)

    def _channels(self) -> tuple[int, int]:
        return -1, self.in_features

    def extra_repr(self) -> str:
        bias = "" if self.bias() is not None else ", bias=False"
        return f"in_features={self.in_features}, out_features={self.out_features}, {super().extra_repr()}{bias}"
