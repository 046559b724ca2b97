"""Arithmetic as modules, so that each sum or product of a hand-prepared model has a place for its observer and its qparams.

A model holds one FloatFunctional per operation and calls `self.skip.add(x, y)` instead of `x + y`. `prepare` puts an observer
under `activation_post_process`; `convert` makes a QFunctional of it. The graph flow needs none of them, and traces through them.
"""

# no `from __future__ import annotations`: torch.jit reads the annotations themselves

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._jit_internal import is_scripting

from qcompiler.backends.torch.runtime import floats
from qcompiler.backends.torch.runtime.functions import as_quint8
from qcompiler.errors import CalibrationError, ConfigError, InputError, Where
from qcompiler.ir.check_qparams import HINT, scale_fault, zero_point_fault
from qcompiler.ir.check_state import assigns, check_state
from qcompiler.nn.place import place_of
from qcompiler.nn.quantized.ends import note_ends, noted_ends
from qcompiler.nn.quantized.from_float import ALL_CODES, output_qparams, trained_ends
from qcompiler.nn.quantized.within import Within

__all__ = ["FXFloatFunctional", "FloatFunctional", "QFunctional"]


class _Functional(nn.Module):
    """What the three have in common: they are not called themselves."""

    @torch.jit.unused
    def forward(self, *args: Any, **kwargs: Any) -> object:
        """Raises ConfigError: there is an operation to choose."""
        names = "add, add_scalar, mul, mul_scalar, cat, add_relu, matmul"
        raise ConfigError(f"{type(self).__name__} is not called itself: use one of its methods {names}", code="functional-called")


class FloatFunctional(_Functional):
    """Float operations whose results pass through `activation_post_process` (nn.Identity until `prepare` puts an observer there).

    add_scalar and mul_scalar are not observed: on integers they change qparams and round nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.activation_post_process: nn.Module = nn.Identity()

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, with broadcasting."""
        return self.activation_post_process(torch.add(x, y))  # type: ignore[no-any-return]

    def add_scalar(self, x: Tensor, y: float) -> Tensor:
        """x + a number."""
        return torch.add(x, y)

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        """x * y, with broadcasting."""
        return self.activation_post_process(torch.mul(x, y))  # type: ignore[no-any-return]

    def mul_scalar(self, x: Tensor, y: float) -> Tensor:
        """x * a number."""
        return torch.mul(x, y)

    def cat(self, x: list[Tensor], dim: int = 0) -> Tensor:
        """torch.cat."""
        return self.activation_post_process(torch.cat(x, dim=dim))  # type: ignore[no-any-return]

    def add_relu(self, x: Tensor, y: Tensor) -> Tensor:
        """relu(x + y)."""
        return self.activation_post_process(torch.relu(torch.add(x, y)))  # type: ignore[no-any-return]

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        """torch.matmul."""
        return self.activation_post_process(torch.matmul(x, y))  # type: ignore[no-any-return]


class FXFloatFunctional(_Functional):
    """FloatFunctional without a place for an observer: the graph flow observes values itself."""

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, with broadcasting."""
        return torch.add(x, y)

    def add_scalar(self, x: Tensor, y: float) -> Tensor:
        """x + a number."""
        return torch.add(x, y)

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        """x * y, with broadcasting."""
        return torch.mul(x, y)

    def mul_scalar(self, x: Tensor, y: float) -> Tensor:
        """x * a number."""
        return torch.mul(x, y)

    def cat(self, x: list[Tensor], dim: int = 0) -> Tensor:
        """torch.cat."""
        return torch.cat(x, dim=dim)

    def add_relu(self, x: Tensor, y: Tensor) -> Tensor:
        """relu(x + y)."""
        return torch.relu(torch.add(x, y))

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        """torch.matmul."""
        return torch.matmul(x, y)


class QFunctional(_Functional):
    """The same operations on quint8 tensors. Results of all but add_scalar and mul_scalar have `scale` and `zero_point`.

    add_scalar and mul_scalar choose their result's qparams from the input's. A QFunctional made from a FloatFunctional whose
    observer saw nothing (only they were used) has scale 0: its other operations raise CalibrationError.
    """

    _FLOAT_MODULE = FloatFunctional

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0
        self.zero_point = 0
        self.activation_post_process: nn.Module = nn.Identity()

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, with broadcasting."""
        x, y = self._checked("add", [x, y])
        if torch.is_same_size(x, y):  # torch's kernel makes its result like the first operand, and resizes it with a warning
            result = torch.ops.quantized.add(x, y, self.scale, self.zero_point)
        else:
            result = floats.add_float(x, y, 1.0, self.scale, self.zero_point)
        return self.activation_post_process(result)  # type: ignore[no-any-return]

    def add_scalar(self, x: Tensor, y: float) -> Tensor:
        """x + a number; the qparams follow from x's and the number."""
        x = self._check_inputs("add_scalar", [x])[0]
        return torch.ops.quantized.add_scalar(x, y)  # type: ignore[no-any-return]

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        """x * y, with broadcasting."""
        x, y = self._checked("mul", [x, y])
        if torch.is_same_size(x, y):
            result = torch.ops.quantized.mul(x, y, self.scale, self.zero_point)
        else:
            result = floats.mul_float(x, y, self.scale, self.zero_point)
        return self.activation_post_process(result)  # type: ignore[no-any-return]

    def mul_scalar(self, x: Tensor, y: float) -> Tensor:
        """x * a number, exact: the same integers (from the other end if it is negative) at another scale."""
        x = self._check_inputs("mul_scalar", [x])[0]
        return torch.ops.quantized.mul_scalar(x, y)  # type: ignore[no-any-return]

    def cat(self, x: list[Tensor], dim: int = 0) -> Tensor:
        """torch.cat; each input is requantized where its qparams are others."""
        x = self._checked("cat", x)
        return self.activation_post_process(torch.ops.quantized.cat(x, dim, self.scale, self.zero_point))  # type: ignore[no-any-return]

    def add_relu(self, x: Tensor, y: Tensor) -> Tensor:
        """relu(x + y)."""
        x, y = self._checked("add_relu", [x, y])
        if torch.is_same_size(x, y):
            result = torch.ops.quantized.add_relu(x, y, self.scale, self.zero_point)
        else:
            result = torch.relu(floats.add_float(x, y, 1.0, self.scale, self.zero_point))
        return self.activation_post_process(result)  # type: ignore[no-any-return]

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        """torch.matmul, computed in float as torch's own int8 kernel does."""
        x, y = self._checked("matmul", [x, y])
        return self.activation_post_process(floats.matmul_float(x, y, self.scale, self.zero_point))  # type: ignore[no-any-return]

    def _checked(self, operation: str, tensors: list[Tensor]) -> list[Tensor]:
        tensors = self._check_inputs(operation, tensors)
        if self.scale <= 0.0:
            if is_scripting():
                raise RuntimeError("QFunctional." + operation + " has no qparams: it was not calibrated")
            self._refuse_uncalibrated(operation)
        return tensors

    def _check_inputs(self, operation: str, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors, all quint8: qint8 ones have the same values then."""
        tensors = [as_quint8(tensor) for tensor in tensors]
        for tensor in tensors:
            if tensor.dtype != torch.quint8:
                if is_scripting():
                    raise RuntimeError("QFunctional." + operation + " takes quint8 tensors: quantize first")
                self._refuse_input(operation, tensor)
        return tensors

    @torch.jit.unused
    def _refuse_input(self, operation: str, tensor: Tensor) -> None:
        where = place_of(self)
        kind = f"{tensor.dtype} tensor of shape {tuple(tensor.shape)}"
        raise InputError(f"QFunctional.{operation} takes quint8 tensors, got a {kind}", code="not-quantized", where=where,
                         hint="quantize it first: a QuantStub on the way of every operand")  # fmt: skip

    @torch.jit.unused
    def _refuse_uncalibrated(self, operation: str) -> None:
        where = place_of(self)
        raise CalibrationError(f"QFunctional.{operation} has no qparams: calibration ran no operation that has", code="not-calibrated",
                               where=where, hint="calibrate with data that takes this path")  # fmt: skip

    def extra_repr(self) -> str:
        return f"scale={self.scale}, zero_point={self.zero_point}"

    @torch.jit.unused
    def _ends(self) -> tuple[int, int]:
        """The codes between which results stay."""
        within = self.activation_post_process
        return (within.least, within.most) if isinstance(within, Within) else ALL_CODES

    @torch.jit.unused
    def _cut(self, ends: tuple[int, int]) -> None:
        """Keep results between codes; what somebody else put behind them stays where that changes nothing."""
        if ends != self._ends():
            self.activation_post_process = nn.Identity() if ends == ALL_CODES else Within(*ends)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "scale"] = torch.tensor(self.scale, dtype=torch.float64)
        destination[prefix + "zero_point"] = torch.tensor(self.zero_point)
        note_ends(destination, prefix, self._ends())

    def _check_own(self, state_dict: Mapping[str, object], prefix: str) -> None:
        """Raises ConfigError for qparams that no quint8 tensor has. A scale of 0: nothing was observed."""
        given = (state_dict.get(prefix + name, value) for name, value in (("scale", 1.0), ("zero_point", 0)))
        scale, zero_point = map(torch.as_tensor, given)
        one = scale.numel() == 1 == zero_point.numel()
        text = (scale_fault(scale) if scale.any() else "") or zero_point_fault(zero_point, torch.quint8) if one else "one number is wanted"
        if text:
            raise ConfigError(f"{prefix}scale, {prefix}zero_point: {text}", code="qparams", hint=HINT,
                              where=Where(module_path=prefix[:-1] or None))  # fmt: skip

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Any, strict: bool,
                              missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str]) -> None:  # fmt: skip
        check_state(self, state_dict, prefix, assigns(local_metadata))
        self._cut(noted_ends(local_metadata, self._ends(), prefix))
        own = {name: prefix + name for name in ("scale", "zero_point")}
        missing_keys += [key for key in own.values() if strict and key not in state_dict]
        self.scale = float(state_dict.get(own["scale"], self.scale))
        self.zero_point = int(state_dict.get(own["zero_point"], self.zero_point))
        rest = {k: v for k, v in state_dict.items() if k not in own.values()}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    @classmethod
    def from_float(cls, mod: FloatFunctional, use_precomputed_fake_quant: bool = False) -> "QFunctional":
        """The QFunctional with the qparams that `mod.activation_post_process` observed."""
        if type(mod) is not cls._FLOAT_MODULE:
            raise ConfigError(f"QFunctional is made from a FloatFunctional, not from {type(mod).__name__}", code="from-float")
        made = cls()
        if getattr(mod.activation_post_process, "observed", True):
            made.scale, made.zero_point = output_qparams(mod, place_of(mod))
            made._cut(trained_ends(mod))
        else:
            made.scale, made.zero_point = 0.0, 0
        return made
