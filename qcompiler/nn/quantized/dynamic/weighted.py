"""OneWeight: a dynamic module with one weight and one bias: what convolutions and linear share."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from qcompiler.errors import ConfigError
from qcompiler.nn.place import place_of
from qcompiler.nn.quantized.dynamic.base import DynamicModule
from qcompiler.nn.quantized.from_float import parts_of


class OneWeight(DynamicModule):
    """Base of convolutions and linear. Buffers: `weight` with its qparams, `bias` (float32 or None)."""

    def _start(self, shape: tuple[int, ...], bias: int | None) -> None:
        """A weight of zeros of this shape; `bias`: number of its elements, None for none."""
        self._hold_zeros("weight", shape)
        self._buffers["bias"] = None if bias is None else torch.zeros(bias)
        self.rebuild()

    def weight(self) -> Tensor:
        """The weight as a qint8 tensor, or as float16."""
        return self._quantized("weight")

    def bias(self) -> Tensor | None:
        """The float bias."""
        return self._buffers["bias"]

    def set_weight_bias(self, w: Tensor, b: Tensor | None) -> None:
        """Takes a qint8 tensor (a float one where weights are float16) and a float bias."""
        self._hold_quantized("weight", w)
        self._hold_bias(b)
        self.rebuild()

    def _hold_bias(self, bias: Tensor | None) -> None:
        self._buffers["bias"] = None if bias is None else bias.detach().float().clone()

    @classmethod
    def _like(cls, base: object, dtype: torch.dtype) -> Self:
        """A module with the float one's settings, weights of zero."""
        raise NotImplementedError

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Self:
        """The dynamic form of a float module, or of a fused one with what `_TAIL` says behind it.

        Its `.qconfig` says how the weight is quantized (default_dynamic_qconfig if it has none). ConfigError for another module.
        """
        del use_precomputed_fake_quant
        base: Any = cls._base_of(mod)
        qconfig, dtype = cls._qconfig_of(base if getattr(base, "qconfig", None) is not None else mod)
        made = cls._like(base, dtype)
        made._hold("weight", base.weight, qconfig)
        made._hold_bias(base.bias)
        return made._adopt(mod, qconfig)

    @classmethod
    def _base_of(cls, mod: nn.Module) -> nn.Module:
        """The module with the weight. ConfigError where others stand behind it than this class computes, which would be lost."""
        parts, classes = parts_of(mod), (cls._BASE, *cls._TAIL)
        found = (parts.base, *([] if parts.norm is None else [parts.norm]), *parts.tail)
        if len(found) != len(classes) or not all(map(isinstance, found, classes)):
            names = " and ".join(f"nn.{kind.__name__}" for kind in classes)
            raise ConfigError(f"{cls.__name__}.from_float takes an {names}, not {type(mod).__name__} [{parts}]", code="from-float",
                              where=place_of(mod))  # fmt: skip
        return parts.base
