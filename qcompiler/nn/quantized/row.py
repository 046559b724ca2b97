"""RowModule: a quantized module that is one row of the op table, its settings and float parameters."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, fx, nn

from qcompiler.backends.torch.site import Operand
from qcompiler.errors import ConfigError, Where
from qcompiler.ir.types import value_of
from qcompiler.nn.place import place_of
from qcompiler.nn.quantized.base import QuantizedModule
from qcompiler.nn.quantized.from_float import ALL_CODES, adds_in_16_bits, output_qparams, trained_ends
from qcompiler.nn.quantized.lowering import Lowering
from qcompiler.ops.spec import ModuleForm, Op, Output
from qcompiler.ops.table import OPS


class RowModule(QuantizedModule):
    """Base of activations, pools and norms. `_OP` names the row; attributes are read from the module as from the float one.

    `_TENSORS`: the row's float parameters after the input, in its order; buffers of the module, None where there is none.
    """

    _OP: ClassVar[str]
    _TENSORS: ClassVar[tuple[str, ...]] = ()
    _BATCHED: ClassVar[bool] = False

    def _row(self) -> Op:
        return OPS.rows[self._OP]

    def _attributes(self) -> dict[str, Any]:
        """The keyword attributes of the canonical call."""
        return dict(self._row().modules[0].attributes(self))

    def _holds(self, **tensors: Tensor | None) -> None:
        """Takes float parameters as buffers."""
        for name, value in tensors.items():
            self.__dict__.pop(name, None)
            self._buffers[name] = None if value is None else value.detach().float().clone()

    def _call(self, lowering: Lowering, x: Operand) -> Operand:
        parameters = [lowering.constant(name, self._buffers[name]) for name in self._TENSORS]
        own = (self.scale, self.zero_point) if "scale" in self._buffers else (None, 0)
        return lowering.call(self._OP, x, *parameters, scale=own[0], zero_point=own[1], **self._attributes())

    def _lower(self, lowering: Lowering, *inputs: Operand) -> Operand | fx.Node:
        """The row; with `_BATCHED`, an input of one dimension less than the usual gets a batch of one for the call."""
        x, rank = inputs[0], value_of(inputs[0].node).shape
        if not self._BATCHED or rank is None or len(rank) == self._RANKS[0]:
            return self._call(lowering, x)
        batch = Operand(lowering.emit.call(torch.ops.aten.unsqueeze.default, x, 0), None)
        return lowering.emit.call(torch.ops.aten.squeeze.dim, self._call(lowering, batch), 0)

    @classmethod
    def _like(cls, mod: object, scale: float, zero_point: int) -> Self:
        """A module with the float one's settings and the result's qparams; they mean nothing where it has its input's."""
        raise NotImplementedError

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Self:
        """The quantized form of a prepared float module, with the qparams of its `activation_post_process`.

        Without one, ranges that are known beforehand (sigmoid, softmax, ...) are taken. Raises ConfigError for another module or a
        setting that has no int8 form, CalibrationError where nothing was observed.
        """
        del use_precomputed_fake_quant  # a fake-quantize's own qparams are always used
        where = place_of(mod)
        row, form = cls._form_of(mod, where)
        reason = form.refuse(mod)
        if reason is not None:
            raise ConfigError(f"this {type(mod).__name__} has no int8 form: {reason}", code="from-float", where=where,
                              hint="set its qconfig to None")  # fmt: skip
        made = cls._like(mod, *_result_qparams(mod, row, where))
        made._qc_path = where.module_path or ""
        if row.output is not Output.SAME and trained_ends(mod) != ALL_CODES:
            made._ends = trained_ends(mod)
            made.rebuild()
        made.train(mod.training)
        return made

    @classmethod
    def _form_of(cls, mod: nn.Module, where: Where) -> tuple[Op, ModuleForm]:
        """The row and form of the float module. ConfigError where this class does not stand for it."""
        kind = OPS.module_form(mod)
        if kind is None or kind[0].name != cls._OP:
            package = cls.__module__.rpartition(".")[0]
            raise ConfigError(f"{package}.{cls.__name__} does not stand for {type(mod).__name__}", code="from-float", where=where)
        return kind


def _result_qparams(mod: nn.Module, row: Op, where: Where) -> tuple[float, int]:
    observer = getattr(mod, "activation_post_process", None)
    if row.output is Output.SAME:
        return 1.0, 0
    if row.fixed is not None and (observer is None or isinstance(observer, nn.Identity)):
        fixed = row.fixed.with_7_bits() if adds_in_16_bits() else row.fixed
        assert isinstance(fixed.scale, float) and isinstance(fixed.zero_point, int)
        return fixed.scale, fixed.zero_point
    return output_qparams(mod, where)


def as_float(value: Tensor | None) -> Tensor | None:
    """A parameter as plain float32; quantized ones are dequantized."""
    return None if value is None else value.dequantize().to(torch.float32)
