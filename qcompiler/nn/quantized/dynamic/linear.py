"""nn.quantized.dynamic.Linear."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from qcompiler.backends.torch import runtime
from qcompiler.nn.quantized.dynamic.base import DynamicModule


class Linear(DynamicModule):
    """y = x W^T + b: x (..., in_features) float32, rounded to its own range at every call; weight int8, or float16."""

    _FLOAT_MODULE: ClassVar[Any] = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
    _ROW = "linear"
    _RELU: ClassVar[bool] = False

    def __init__(self, in_features: int, out_features: int, bias_: bool = True, dtype: torch.dtype = torch.qint8) -> None:
        """Weights of zero; `bias_` False: none. Raises ConfigError for dtypes other than qint8 and float16."""
        super().__init__(dtype)
        self.in_features, self.out_features = in_features, out_features
        zeros = torch.zeros(out_features, in_features)
        if self._is_half:
            self._buffers["weight"] = zeros.half()
        else:
            self._hold_int8("weight", zeros.to(torch.int8), torch.tensor(1.0, dtype=torch.float64), torch.tensor(0))
        self._buffers["bias"] = torch.zeros(out_features) if bias_ else None
        self.rebuild()

    def _packed(self) -> tuple[str, dict[str, Any]]:
        relu = {"_relu": self._RELU}
        if self._is_half and not self._half_kernel:
            return "float_linear", {"_weight": self._float("weight"), "_bias": self.bias(), **relu}
        if self._is_half:
            return "packed_linear", {"_pack": runtime.prepack_linear_half(self._part("weight"), self.bias()), "_reduce": False, **relu}
        pack = runtime.prepack_linear(*self._int8("weight"), self.bias(), self._axis("weight"), "")
        return "packed_linear", {"_pack": pack, "_reduce": self._reduces(), **relu}

    def _infer(self, x: Tensor) -> Tensor:
        self._check("x", x)
        return self._run(x)  # type: ignore[no-any-return]

    def weight(self) -> Tensor:
        """The weight as a qint8 tensor, or as float16."""
        return self._quantized("weight")

    def bias(self) -> Tensor | None:
        """The float bias."""
        return self._buffers["bias"]

    def set_weight_bias(self, w: Tensor, b: Tensor | None) -> None:
        """Takes a qint8 tensor (a float one where weights are float16) and a float bias."""
        self._hold_quantized("weight", w)
        self._buffers["bias"] = None if b is None else b.detach().float().clone()
        self.rebuild()

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Self:
        """The dynamic form of a float linear; its `.qconfig` says how the weight is quantized (default_dynamic_qconfig if it has none)."""
        del use_precomputed_fake_quant
        base: Any = mod[0] if isinstance(mod, nn.Sequential) else mod
        cls._expect_type(base, nn.Linear)
        if getattr(base, "qconfig", None) is None and getattr(mod, "qconfig", None) is not None:
            base.qconfig = mod.qconfig
        qconfig, dtype = cls._qconfig_of(base)
        made = cls(base.in_features, base.out_features, base.bias is not None, dtype)
        made._hold("weight", base.weight, qconfig)
        made._buffers["bias"] = None if base.bias is None else base.bias.detach().float().clone()
        return made._adopt(mod, qconfig)

    def extra_repr(self) -> str:
        bias = "" if self.bias() is not None else ", bias=False"
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._weight_repr('weight')}{bias}"

