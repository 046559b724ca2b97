"""WeightedModule: a quantized module with an int8 weight and a float bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, fx, nn

from qcompiler.backends.torch.site import Operand
from qcompiler.errors import ConfigError
from qcompiler.nn.place import place_of
from qcompiler.nn.quantized.base import QuantizedModule
from qcompiler.nn.quantized.from_float import Parts, float_weight, int8_weight, output_qparams, parts_of, trained_ends
from qcompiler.nn.quantized.lowering import Lowering
from qcompiler.nn.quantized.torch_state import plain_state
from qcompiler.ops.quantized_tensors import channel_axis, qparams_of_tensor, quantized_tensor
from qcompiler.ops.spec import Op
from qcompiler.ops.table import OPS

RELU = (0.0, None)


class WeightedModule(QuantizedModule):
    """Base of convolutions and linear. Buffers: `weight` (int8), `weight_scale` and `weight_zero_point` (no dimension: per
    tensor; a vector: along the output channels), `bias` (float32 or None), `scale`, `zero_point`.

    `_OP` names the row. `_BOUNDS` clamps the result.
    """

    _OP: ClassVar[str]
    _BASE_OP: ClassVar[str] = ""  # the row of the float module that holds the weight, where that is another
    _BOUNDS: ClassVar[tuple[float | None, float | None] | None] = None

    def __init__(self, shape: tuple[int, ...], bias: int | None) -> None:
        """A weight of zeros of this shape; `bias`: number of its elements, None for none."""
        super().__init__()
        self._buffers["weight"] = torch.zeros(shape, dtype=torch.int8)
        self._buffers["weight_scale"] = torch.tensor(1.0, dtype=torch.float64)
        self._buffers["weight_zero_point"] = torch.tensor(0, dtype=torch.int64)
        self._buffers["bias"] = None if bias is None else torch.zeros(bias)

    @classmethod
    def _row(cls) -> Op:
        return OPS.rows[cls._OP]

    @classmethod
    def _settings_of(cls, module: nn.Module) -> dict[str, object]:
        """The keyword attributes of the canonical call, from this module or from the float one: their settings have the same names."""
        return dict(OPS.rows[cls._BASE_OP or cls._OP].modules[0].attributes(module))

    def _axis(self) -> int | None:
        scale = self._buffers["weight_scale"]
        assert scale is not None
        return self._row().weight_axis if scale.dim() else None

    def _stored(self) -> tuple[Tensor, Tensor, Tensor]:
        """(values, scale, zero point) of the weight."""
        values, scale, zero_point = (self._buffers[n] for n in ("weight", "weight_scale", "weight_zero_point"))
        assert values is not None and scale is not None and zero_point is not None
        return values, scale, zero_point

    def _parameters_in(self, lowering: Lowering) -> tuple[object, fx.Node | None]:
        """(weight, bias) as arguments of a call."""
        return lowering.weight(*self._stored(), self._axis()), lowering.constant("bias", self._buffers["bias"])

    def _extra_attributes(self) -> dict[str, object]:
        """Attributes of the row that the float module with the weight does not have."""
        return {} if self._BOUNDS is None else {"bounds": self._BOUNDS}

    def _lower(self, lowering: Lowering, *inputs: Operand) -> Operand | fx.Node:
        attributes = self._settings_of(self) | self._extra_attributes()
        args = (inputs[0], *self._parameters_in(lowering), *inputs[1:])
        return lowering.call(self._OP, *args, scale=self.scale, zero_point=self.zero_point, **attributes)

    def weight(self) -> Tensor:
        """The weight as a quantized tensor."""
        return quantized_tensor(*self._stored(), self._axis())

    def bias(self) -> Tensor | None:
        """The float bias."""
        return self._buffers["bias"]

    def set_weight_bias(self, w: Tensor, b: Tensor | None) -> None:
        """Takes a qint8 tensor (per tensor, or per output channel) and a float bias.

        Raises ConfigError for another shape, dtype or channel axis.
        """
        held = self._stored()[0]
        if not w.is_quantized or w.dtype is not torch.qint8 or w.shape != held.shape:
            raise ConfigError(f"the weight of this {self._get_name()} is a qint8 tensor of shape {tuple(held.shape)}, not {w.dtype} of "
                              f"{tuple(w.shape)}", code="weight-shape", where=self._where())  # fmt: skip
        axis, wanted = channel_axis(w), self._row().weight_axis
        if axis not in (None, wanted):
            raise ConfigError(f"the weight is quantized along axis {axis}, not {wanted}", code="weight-axis", where=self._where())
        self._hold(w.int_repr(), *qparams_of_tensor(w), b)
        self.rebuild()

    def _hold(self, values: Tensor, scale: Tensor, zero_point: Tensor, bias: Tensor | None) -> None:
        self._buffers["weight"] = values.detach().contiguous()
        self._buffers["weight_scale"] = scale.detach().to(torch.float64).clone()
        self._buffers["weight_zero_point"] = zero_point.detach().to(torch.int64).clone()
        self._buffers["bias"] = None if bias is None else bias.detach().float().clone()

    def _resizes(self, name: str, value: Tensor) -> bool:
        axis = self._row().weight_axis
        fits = value.dim() == 0 or value.shape == self._stored()[0].shape[axis : axis + 1]
        return super()._resizes(name, value) or (name in ("weight_scale", "weight_zero_point") and fits)

    def _as_ours(self, state_dict: Mapping[str, object], prefix: str) -> Mapping[str, object]:
        return plain_state(state_dict, prefix)

    @classmethod
    def _like(cls, parts: Parts) -> Self:
        """A module of the float one's settings, weights of zero."""
        raise NotImplementedError

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Self:
        """The quantized form of a prepared float module, of a fused one (BatchNorm is folded) or of a QAT module.

        Weight: qparams of `weight_fake_quant`, else of the qconfig's observer. Result: those of `activation_post_process`.
        Raises ConfigError for another module or without a qconfig, CalibrationError where nothing was observed.
        """
        del use_precomputed_fake_quant  # a fake-quantize's own qparams are always used
        where = place_of(mod)
        parts = parts_of(mod)
        cls._expect(mod, parts, where)
        scale, zero_point = output_qparams(mod, where)
        row = cls._row()
        weight, bias = float_weight(parts, row.weight_axis)
        holder = mod if hasattr(mod, "weight_fake_quant") or getattr(mod, "qconfig", None) else parts.base
        int8 = int8_weight(row, cls._settings_of(parts.base), weight, holder, torch.backends.quantized.engine, where)
        made = cls._like(parts)
        made._qc_path = where.module_path or ""
        made._hold(int8.values, int8.scale, int8.zero_point, bias)
        made._ends = trained_ends(mod)
        made._set_qparams(scale, zero_point)
        made.train(mod.training)
        return made

    def extra_repr(self) -> str:
        scheme = "per tensor" if self._axis() is None else "per channel"
        return f"scale={self.scale}, zero_point={self.zero_point}, weight {scheme}"
