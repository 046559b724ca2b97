"""nn.quantized.dynamic.Linear."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from qcompiler.backends.torch.runtime import packs
from qcompiler.errors import InputError
from qcompiler.nn.float_classes import FloatClasses
from qcompiler.nn.quantized.dynamic.weighted import OneWeight


class Linear(OneWeight):
    """y = x W^T + b: x (..., in_features) float32, rounded to its own range at every call; weight int8, or float16."""

    _FLOAT_MODULE: ClassVar[FloatClasses] = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
    _BASE = nn.Linear
    _ROW = "linear"
    _RELU: ClassVar[bool] = False

    def __init__(self, in_features: int, out_features: int, bias_: bool = True, dtype: torch.dtype = torch.qint8) -> None:
        """Weights of zero; `bias_` False: none. Raises ConfigError for dtypes other than qint8 and float16."""
        super().__init__(dtype)
        self.in_features, self.out_features = in_features, out_features
        self._start((out_features, in_features), out_features if bias_ else None)

    def _packed(self) -> tuple[str, dict[str, object]]:
        relu = {"_relu": self._RELU}
        if self._is_half and not self._half_kernel:
            return "float_linear", {"_weight": self._float("weight"), "_bias": self.bias(), **relu}
        if self._is_half:
            return "packed_linear", {"_pack": packs.prepack_linear_half(self._part("weight"), self.bias()), "_reduce": False, **relu}
        pack = packs.prepack_linear(*self._int8("weight"), self.bias(), self._axis("weight"), "")
        return "packed_linear", {"_pack": pack, "_reduce": self._reduces(), **relu}

    def _infer(self, x: Tensor) -> Tensor:
        self._check("x", x)
        if not torch.jit.is_tracing() and (x.dim() == 0 or x.shape[-1] != self.in_features):  # type: ignore[attr-defined]
            raise InputError(f"{self._get_name()} takes {self.in_features} features in the last dimension, got shape {tuple(x.shape)}",
                             code="input-shape", where=self._where())  # fmt: skip
        return self._run(x)  # type: ignore[no-any-return]

    @classmethod
    def _like(cls, base: Any, dtype: torch.dtype) -> Self:
        return cls(base.in_features, base.out_features, base.bias is not None, dtype)

    def extra_repr(self) -> str:
        bias = "" if self.bias() is not None else ", bias=False"
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._weight_repr('weight')}{bias}"
