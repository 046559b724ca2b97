"""DynamicModule: a module on floats with int8 or float16 weights; int8 products round their activations as they come."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn, Self

import torch
from torch import Tensor, nn

from qcompiler.backends.torch.kernels import modes
from qcompiler.backends.torch.program.once import quantized_engine
from qcompiler.backends.torch.runtime import packs
from qcompiler.backends.torch.site import host_isa
from qcompiler.config.qconfig import QConfig, as_qconfig, default_dynamic_qconfig, float16_dynamic_qconfig, mode_of
from qcompiler.config.qconfig_of_op import weight_observer
from qcompiler.errors import ConfigError, InputError
from qcompiler.ir.types import Mode
from qcompiler.nn.place import place_of
from qcompiler.nn.quantized.float_module import FloatModule
from qcompiler.observers.weights import take_axis
from qcompiler.ops.quantized_tensors import qparams_of_tensor, quantized_tensor
from qcompiler.ops.reference import quantize_weight
from qcompiler.ops.table import OPS

KINDS = {torch.qint8: Mode.DYNAMIC, torch.int8: Mode.DYNAMIC, torch.float16: Mode.HALF}


class DynamicModule(FloatModule):
    """Base of the modules that take and give float tensors and hold quantized weights. No data is needed to make one.

    Buffers of each weight: its int8 values, `<name>_scale` and `<name>_zero_point` (no dimension: per tensor; a vector: per
    output channel), or its float16 values alone; biases are float32. Activations are rounded to 255 steps of the range of the
    values at hand, to 127 where the kernel of this machine sums in 16 bits or `reduce_range` was asked for.
    """

    _ROW: ClassVar[str]  # of the op table

    def __init__(self, dtype: torch.dtype = torch.qint8) -> None:
        super().__init__()
        if dtype not in KINDS:
            raise ConfigError(f"{self._get_name()} has torch.qint8 or torch.float16 weights, not {dtype}", code="weight-dtype")
        self.dtype = torch.float16 if dtype is torch.float16 else torch.qint8
        self.reduce_range: bool | None = None

    @property
    def _is_half(self) -> bool:
        """Whether the weights are float16."""
        return self.dtype is torch.float16

    def _hold(self, name: str, weight: Tensor, qconfig: QConfig) -> None:
        """Stores a float weight under a name, quantized as the qconfig (or a fake-quantize's qparams) says."""
        for end in ("", "_scale", "_zero_point"):
            self._buffers.pop(name + end, None)
        if self._is_half:
            self._buffers[name] = halved(weight)
            return
        observer: Any = weight_observer(OPS.rows[self._ROW], qconfig)
        axis = self._channel_axis() if observer.is_per_channel else None
        if axis is not None and hasattr(observer, "ch_axis"):
            take_axis(observer, axis, weight)
        observer(weight.detach().float())
        scale, zero_point = observer.calculate_qparams()
        scale, zero_point = scale.double().reshape(-1), zero_point.to(torch.int64).reshape(-1)
        values = quantize_weight(weight.detach(), scale, zero_point, axis, observer.quant_min, observer.quant_max)
        shape = (-1,) if axis is not None else ()
        self._hold_int8(name, values, scale.reshape(shape), zero_point.reshape(shape))

    def _hold_zeros(self, name: str, shape: tuple[int, ...]) -> None:
        """Stores a weight of zeros."""
        if self._is_half:
            self._buffers[name] = torch.zeros(shape, dtype=torch.float16)
        else:
            self._hold_int8(name, torch.zeros(shape, dtype=torch.int8), torch.tensor(1.0, dtype=torch.float64), torch.tensor(0))

    def _hold_int8(self, name: str, values: Tensor, scale: Tensor, zero_point: Tensor) -> None:
        self._buffers[name], self._buffers[f"{name}_scale"], self._buffers[f"{name}_zero_point"] = values, scale, zero_point

    def _hold_quantized(self, name: str, weight: Tensor) -> None:
        """Stores a qint8 tensor, or a float one for float16 weights. ConfigError for another dtype or shape."""
        held = self._buffers.get(name)
        if (held is not None and held.shape != weight.shape) or weight.is_quantized == self._is_half:
            shape = tuple(held.shape) if held is not None else "any shape"
            raise ConfigError(f"{name} of this {self._get_name()} is a {self.dtype} tensor of {shape}, not {weight.dtype} of "
                              f"{tuple(weight.shape)}", code="weight-shape", where=self._where())  # fmt: skip
        if not weight.is_quantized:
            self._buffers[name] = halved(weight)
        else:
            self._hold_int8(name, weight.int_repr(), *qparams_of_tensor(weight))

    def _channel_axis(self) -> int:
        return OPS.rows[self._ROW].weight_axis

    def _part(self, name: str) -> Tensor:
        value = self._buffers[name]
        assert value is not None
        return value

    def _axis(self, name: str) -> int:
        """The channel axis of a stored weight, -1 per tensor: as runtime functions take it."""
        return self._channel_axis() if self._part(f"{name}_scale").dim() else -1

    def _int8(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """(values, scale, zero point), the latter two as vectors."""
        return self._part(name), self._part(f"{name}_scale").reshape(-1), self._part(f"{name}_zero_point").reshape(-1)

    def _quantized(self, name: str) -> Tensor:
        """The weight as a qint8 tensor; float16 weights as they are."""
        if self._is_half:
            return self._part(name)
        return quantized_tensor(*self._int8(name), None if self._axis(name) < 0 else self._channel_axis())

    def _float(self, name: str) -> Tensor:
        """The weight's float32 values."""
        if self._is_half:
            return self._part(name).float()
        return packs.float_weight(*self._int8(name), self._axis(name))

    def _reduces(self) -> bool:
        """Whether activations are rounded to 127 steps."""
        if self.reduce_range is not None and self._engine != "qnnpack":
            return self.reduce_range
        return modes.activation_range(None, default_dynamic_qconfig, self._engine, host_isa())[1] == 127

    @property
    def _half_kernel(self) -> bool:
        """Whether the engine multiplies by float16 weights; else they are widened once."""
        return self._is_half and self._engine in modes.HALF_ENGINES

    def _packed(self) -> tuple[str, dict[str, object]]:
        """The name of what computes (of scripted.FORMS), and the attributes that it reads: what the buffers give."""
        raise NotImplementedError

    def rebuild(self) -> None:
        """Packs weights anew from the module's tensors."""
        with quantized_engine(self._engine), torch.no_grad():
            name, made = self._packed()
        self._computes(name, {"_half": self._is_half, **made})

    def _check(self, name: str, value: Any) -> None:
        if not isinstance(value, Tensor) or value.dtype is not torch.float32:
            self._reject(name, value)

    def _reject(self, name: str, value: object) -> NoReturn:
        got = f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__qualname__
        hint = "put a DeQuantStub before it" if isinstance(value, Tensor) and value.is_quantized else "call .float() on it"
        raise InputError(f"{self._get_name()}: {name} must be a torch.float32 tensor, not {got}", code="input-type", where=self._where(),
                         hint=hint)  # fmt: skip

    def _resizes(self, name: str, value: Tensor) -> bool:
        return name.endswith(("_scale", "_zero_point"))

    @classmethod
    def _qconfig_of(cls, mod: nn.Module) -> tuple[QConfig, torch.dtype]:
        """The module's qconfig (default_dynamic_qconfig where it has none) and the dtype of the weights."""
        given = getattr(mod, "qconfig", None)
        qconfig = as_qconfig(given) if given is not None else default_dynamic_qconfig
        assert qconfig is not None
        mode = mode_of(qconfig)
        if mode is Mode.HALF:
            return float16_dynamic_qconfig, torch.float16
        weight: Any = qconfig.weight()
        if getattr(weight, "dtype", None) is not torch.int8:
            raise ConfigError(f"{cls.__name__} has torch.qint8 or torch.float16 weights, its qconfig says {getattr(weight, 'dtype', None)}",
                              code="weight-dtype", where=place_of(mod))  # fmt: skip
        return qconfig, torch.qint8

    @classmethod
    def _expect_type(cls, mod: nn.Module, *kinds: type[nn.Module]) -> None:
        if not isinstance(mod, kinds):
            names = " or ".join(f"nn.{kind.__name__}" for kind in kinds)
            raise ConfigError(f"{cls.__name__}.from_float takes an {names}, not {type(mod).__name__}", code="from-float",
                              where=place_of(mod))  # fmt: skip

    def _adopt(self, mod: nn.Module, qconfig: QConfig) -> Self:
        """What every module made by from_float gets from the float one."""
        self._qc_path = getattr(mod, "_qc_path", "") or ""
        observer = qconfig.activation()
        if getattr(observer, "reduce_range", None) is not None:
            self.reduce_range = bool(observer.reduce_range)
        self.train(mod.training)
        self.rebuild()
        return self

    def _get_name(self) -> str:
        return f"DynamicQuantized{type(self).__name__}"

    def _weight_repr(self, name: str) -> str:
        """The settings of a weight, for repr."""
        if self._is_half:
            return "dtype=torch.float16"
        scale = self._part(f"{name}_scale")
        scheme = f"scale={float(scale):.6g}" if not scale.dim() else f"scales={float(scale.min()):.6g}..{float(scale.max()):.6g}"
        return f"dtype=torch.qint8, qscheme={'torch.per_channel_affine' if scale.dim() else 'torch.per_tensor_affine'}, {scheme}"


def halved(weight: Tensor) -> Tensor:
    """The weight as float16. ConfigError where that cannot hold it."""
    half = weight.detach().to(torch.float16)
    if not bool(torch.isfinite(half).all()):
        raise ConfigError("float16 holds values up to 65504; the weight has larger ones, or no numbers", code="range")
    return half
