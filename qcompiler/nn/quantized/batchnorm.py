"""nn.quantized.BatchNorm2d and BatchNorm3d: normalization with fixed statistics, where no convolution can take it in."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, fx, nn

from qcompiler.backends.torch.site import Operand
from qcompiler.nn.place import place_of
from qcompiler.nn.quantized.base import QuantizedModule
from qcompiler.nn.quantized.from_float import output_qparams, parts_of, statistics_of, trained_ends
from qcompiler.nn.quantized.lowering import Lowering

TENSORS = ("running_mean", "running_var", "weight", "bias")


class BatchNormNd(QuantizedModule):
    """y = (x - running_mean) / sqrt(running_var + eps) * weight + bias on a quint8 tensor, as nn.BatchNorm does in eval mode.

    Buffers of float32, one value a channel: `running_mean`, `running_var`, `weight`, `bias`; and `scale`, `zero_point`.
    """

    _BOUNDS: ClassVar[tuple[float | None, float | None] | None] = None
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, device: object = None, dtype: object = None) -> None:
        """Statistics 0 and 1, weight 1, bias 0. The last three are taken for torch's sake and not used."""
        del momentum, device, dtype
        super().__init__()
        self.num_features, self.eps = num_features, float(eps)
        for name, value in zip(TENSORS, (0.0, 1.0, 1.0, 0.0)):
            self.register_buffer(name, torch.full((num_features,), value))
        self.register_buffer("num_batches_tracked", torch.tensor(0))  # a float BatchNorm has it in its state_dict
        self.rebuild()

    def _lower(self, lowering: Lowering, *inputs: Operand) -> Operand | fx.Node:
        statistics = (lowering.constant(name, self._buffers[name]) for name in TENSORS)
        bounds = {} if self._BOUNDS is None else {"bounds": self._BOUNDS}
        return lowering.call("batch_norm", inputs[0], *statistics, scale=self.scale, zero_point=self.zero_point, eps=self.eps, **bounds)

    def _channels(self) -> tuple[int, int]:
        return 1, self.num_features

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Self:
        """The quantized form of a prepared BatchNorm, or of one with its ReLU.

        Raises ConfigError for another module or one without running statistics, CalibrationError where nothing was observed.
        """
        del use_precomputed_fake_quant
        where = place_of(mod)
        parts = parts_of(mod)
        cls._expect(mod, parts, where)
        base: Any = parts.base
        made = cls(base.num_features, base.eps)
        for name, value in zip(TENSORS, statistics_of(base)):
            if value is not None:  # affine=False: weight 1, bias 0
                made._buffers[name] = value.clone()
        made._qc_path = where.module_path or ""
        made._ends = trained_ends(mod)
        made._set_qparams(*output_qparams(mod, where))
        made.train(mod.training)
        return made

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, {super().extra_repr()}"


class BatchNorm2d(BatchNormNd):
    """nn.BatchNorm2d in eval mode on a quint8 tensor (N, C, H, W)."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.BatchNorm2d
    _BASE, _RANKS = nn.BatchNorm2d, (4,)


class BatchNorm3d(BatchNormNd):
    """nn.BatchNorm3d in eval mode on a quint8 tensor (N, C, D, H, W)."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.BatchNorm3d
    _BASE, _RANKS = nn.BatchNorm3d, (5,)
