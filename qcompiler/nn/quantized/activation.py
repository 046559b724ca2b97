"""nn.quantized.ReLU, ReLU6, Hardswish, LeakyReLU, ELU, PReLU, Sigmoid, Softmax, and Activation for other functions of single values."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from qcompiler.errors import ConfigError, Where
from qcompiler.nn.float_classes import FloatClasses
from qcompiler.nn.quantized.row import RowModule, as_float
from qcompiler.ops.spec import ModuleForm, Op
from qcompiler.ops.table import OPS


class ReLU(RowModule):
    """max(x, 0), exact, at the input's qparams. `inplace` is kept for its name alone: the result is a new tensor."""

    # no _FLOAT_MODULE: nn.ReLU itself runs on quint8 tensors as on float ones, so a conversion leaves it
    _OP = "relu"

    def __init__(self, inplace: bool = False) -> None:
        super().__init__(None)
        self.inplace = inplace
        self.rebuild()

    @classmethod
    def _like(cls, mod: Any, scale: float, zero_point: int) -> Self:
        return cls(mod.inplace)


class ReLU6(RowModule):
    """min(max(x, 0), 6) at the input's qparams. `inplace` is kept for its name alone: the result is a new tensor."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.ReLU6
    _OP = "clamp"

    def __init__(self, inplace: bool = False) -> None:
        super().__init__(None)
        self.inplace = inplace
        self.rebuild()

    def _attributes(self) -> dict[str, Any]:
        return {"min": 0.0, "max": 6.0}

    @classmethod
    def _like(cls, mod: Any, scale: float, zero_point: int) -> Self:
        return cls(mod.inplace)


class Hardswish(RowModule):
    """x * relu6(x + 3) / 6."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.Hardswish
    _OP = "hardswish"

    def __init__(self, scale: float, zero_point: int, device: object = None, dtype: object = None) -> None:
        """Qparams of the result. `device` and `dtype` are taken for torch's sake and not used."""
        del device, dtype
        super().__init__(scale, zero_point)
        self.rebuild()

    @classmethod
    def _like(cls, mod: object, scale: float, zero_point: int) -> Self:
        return cls(scale, zero_point)


class LeakyReLU(RowModule):
    """x where x > 0, else negative_slope * x. `inplace` is kept for its name alone: the result is a new tensor."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.LeakyReLU
    _OP = "leaky_relu"

    def __init__(self, scale: float, zero_point: int, negative_slope: float = 1e-2, inplace: bool = False, device: object = None,
                 dtype: object = None) -> None:  # fmt: skip
        """Qparams of the result. `device` and `dtype` are taken for torch's sake and not used."""
        del device, dtype
        super().__init__(scale, zero_point)
        self.negative_slope, self.inplace = negative_slope, inplace
        self.rebuild()

    @classmethod
    def _like(cls, mod: Any, scale: float, zero_point: int) -> Self:
        return cls(scale, zero_point, mod.negative_slope, mod.inplace)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}, {super().extra_repr()}"


class ELU(RowModule):
    """x where x > 0, else alpha * (exp(x) - 1)."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.ELU
    _OP = "elu"

    def __init__(self, scale: float, zero_point: int, alpha: float = 1.0) -> None:
        super().__init__(scale, zero_point)
        self.alpha = alpha
        self.rebuild()

    @classmethod
    def _like(cls, mod: Any, scale: float, zero_point: int) -> Self:
        return cls(scale, zero_point, mod.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, {super().extra_repr()}"


class Sigmoid(RowModule):
    """1 / (1 + exp(-x)). Made from a float module without an observer, its result has scale 1/256 and zero point 0."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.Sigmoid
    _OP = "sigmoid"

    def __init__(self, output_scale: float, output_zero_point: int) -> None:
        super().__init__(output_scale, output_zero_point)
        self.rebuild()

    @property
    def output_scale(self) -> float:
        """`scale` by torch's name."""
        return self.scale

    @property
    def output_zero_point(self) -> int:
        """`zero_point` by torch's name."""
        return self.zero_point

    @classmethod
    def _like(cls, mod: object, scale: float, zero_point: int) -> Self:
        return cls(scale, zero_point)


class Softmax(RowModule):
    """exp(x) / sum of exp(x) along `dim` (None: as nn.Softmax, 0 for 0, 1 or 3 dimensions, else 1)."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.Softmax
    _OP = "softmax"

    def __init__(self, dim: int | None = None, scale: float = 1.0, zero_point: int = 0) -> None:
        super().__init__(scale, zero_point)
        self.dim = dim
        self.rebuild()

    @classmethod
    def _like(cls, mod: Any, scale: float, zero_point: int) -> Self:
        return cls(mod.dim, scale, zero_point)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, {super().extra_repr()}"


class PReLU(RowModule):
    """x where x > 0, else weight * x, one slope or one per channel. The slopes stay float: torch's int8 PReLU is wrong."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.PReLU
    _OP = "prelu"
    _TENSORS = ("weight",)

    def __init__(self, output_scale: float, output_zero_point: int, num_parameters: int = 1) -> None:
        """Slopes of 0.25, as nn.PReLU."""
        super().__init__(output_scale, output_zero_point)
        self.num_parameters = num_parameters
        self._holds(weight=torch.full((num_parameters,), 0.25))
        self.rebuild()

    def _attributes(self) -> dict[str, Any]:
        return {}

    def set_weight(self, w: Tensor) -> None:
        """Takes the slopes, a float or a quantized tensor of `num_parameters` elements. Raises ConfigError for another number."""
        if tuple(w.shape) != (self.num_parameters,):
            raise ConfigError(f"this {self._get_name()} has {self.num_parameters} slopes, not {tuple(w.shape)}", code="weight-shape",
                              where=self._where())  # fmt: skip
        self._holds(weight=as_float(w))
        self.rebuild()

    @classmethod
    def _like(cls, mod: Any, scale: float, zero_point: int) -> Self:
        made = cls(scale, zero_point, mod.num_parameters)
        made.set_weight(mod.weight)
        return made

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}, {super().extra_repr()}"


OWN_CLASS = ("hardswish", "leaky_relu", "elu", "sigmoid")


class Activation(RowModule):
    """Any other function of single values that has a row in the op table: SiLU, GELU, Mish, Tanh, Softplus, CELU, ...

    `op` names the row, `attributes` are those of its canonical call. With a scale for the result alone, so computed in float.
    """

    _FLOAT_MODULE: ClassVar[FloatClasses] = tuple(
        form.cls for row in OPS.rows.values() if row.elementwise and row.name not in OWN_CLASS for form in row.modules
        if isinstance(form.cls, type)
    )  # fmt: skip

    def __init__(self, op: str, scale: float, zero_point: int, **attributes: object) -> None:
        """Raises ConfigError where the table has no such function of single values."""
        row = OPS.rows.get(op)
        if row is None or not row.elementwise:
            raise ConfigError(f"{op!r} is no function of single values in the op table", code="no-such-row")
        super().__init__(scale, zero_point)
        self.op, self.attributes = op, dict(attributes)
        self.rebuild()

    @property
    def _OP(self) -> str:  # type: ignore[override]
        return self.op

    def _attributes(self) -> dict[str, Any]:
        return self.attributes

    @classmethod
    def _form_of(cls, mod: nn.Module, where: Where) -> tuple[Op, ModuleForm]:
        kind = OPS.module_form(mod)
        if kind is None or not kind[0].elementwise:
            raise ConfigError(f"{type(mod).__name__} is no function of single values in the op table", code="from-float", where=where)
        return kind

    @classmethod
    def _like(cls, mod: Any, scale: float, zero_point: int) -> Self:
        row, form = cls._form_of(mod, Where())
        return cls(row.name, scale, zero_point, **form.attributes(mod))

    def extra_repr(self) -> str:
        settings = "".join(f", {name}={value!r}" for name, value in self.attributes.items())
        return f"{self.op}{settings}, {super().extra_repr()}"
