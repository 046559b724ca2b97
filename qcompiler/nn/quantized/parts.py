"""Observed parts -> int8 parts, for the modules that hold several: LSTM and MultiheadAttention."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn

from qcompiler.errors import ConfigError
from qcompiler.nn import qat
from qcompiler.nn.place import place_of
from qcompiler.nn.quantizable.observe import Observed
from qcompiler.nn.quantized.activation import Activation, Sigmoid
from qcompiler.nn.quantized.functional_modules import FloatFunctional, QFunctional
from qcompiler.nn.quantized.linear import Linear
from qcompiler.nn.quantized.quantize import Quantize

M = TypeVar("M", bound=nn.Module)
INT8: dict[type[nn.Module], Any] = {
    nn.Linear: Linear, qat.Linear: Linear, nn.Sigmoid: Sigmoid, nn.Tanh: Activation, FloatFunctional: QFunctional, Observed: Quantize,
}  # fmt: skip


def not_from_float(name: str) -> ConfigError:
    """The error of `from_float` of a class that is made from an observed module."""
    way = f"quantizable.{name}.from_float, calibrate, quantized.{name}.from_observed"
    return ConfigError(f"quantized.{name} is not made from a float module", code="from-float", hint=f"{way}; prepare and convert do it")


def convert_parts(observed: nn.Module, classes: dict[type[nn.Module], type[M]]) -> M:
    """A copy of an observed module with int8 parts; modules of the classes in `classes` become those. ConfigError for another."""
    if type(observed) not in classes:
        wanted = ", ".join(f"quantizable.{cls.__name__}" for cls in classes)
        raise ConfigError(f"from_observed takes an observed {wanted}, not {type(observed).__name__}", code="from-observed",
                          where=place_of(observed), hint="from_float makes one")  # fmt: skip
    made: Any = copy.deepcopy(observed)
    for part in list(made.modules()):
        for name, child in list(part._modules.items()):
            if type(child) in INT8:
                part._modules[name] = INT8[type(child)].from_float(child)
    for part in made.modules():
        part.__dict__.pop("qconfig", None)
        part.__class__ = classes.get(type(part), type(part))
    made.requires_grad_(False).eval()
    return made  # type: ignore[no-any-return]
