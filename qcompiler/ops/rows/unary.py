"""Functions of single values that have no kernel of their own: each runs as an exact table of 256 entries.

In int8 they lose what the rounding of their result costs; values that a function does not take (the log of 0) become the end of
the range that calibration saw.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from qcompiler.ops.example import Example
from qcompiler.ops.spec import Family, ModuleForm, Op, Output, Param, Spelling

X = (Param("x"),)
# Each is a function of torch and a method of tensors by that name, and takes nothing but the tensor.
PLAIN = ("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "square",
         "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "erf", "erfc",
         "floor", "ceil", "trunc", "frac", "sign")  # fmt: skip
STEEP = ("log", "log2", "log10", "sqrt", "rsqrt", "reciprocal")  # without a bound near 0
ALIASES: dict[str, tuple[object, ...]] = {
    "asin": (torch.arcsin, "arcsin"), "acos": (torch.arccos, "arccos"), "atan": (torch.arctan, "arctan"),
    "trunc": (torch.fix, "fix"), "exp2": (torch.special.exp2,), "expm1": (torch.special.expm1,), "log1p": (torch.special.log1p,),
    "erf": (torch.special.erf,), "erfc": (torch.special.erfc,),
}  # fmt: skip


# Examples for which the results are finite; and functions that jump, whose results may be far off where a step of the input is.
POSITIVE = ("log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "acosh", "logit")
BOUNDED = ("asin", "acos", "atanh", "tan")
# Activations: their slope is at most about 1, on a side without bound.
FLAT = ("abs", "neg", "threshold", "hardshrink", "softshrink", "tanhshrink", "rrelu", "selu", "logsigmoid")
JUMPS = ("floor", "ceil", "trunc", "frac", "sign", "remainder", "fmod", "floor_divide")


def _row(name: str, fn: Any, signature: str, spellings: tuple[Any, ...], *modules: ModuleForm, **attributes: Any) -> Op:
    example = Example(attributes=attributes, positive=name in POSITIVE, bounded=name in BOUNDED, smooth=name not in JUMPS)
    return Op(name=name, fn=fn, signature=signature, params=X, output=Output.OWN, elementwise=True, spellings=spellings, modules=modules,
              family=Family.ACTIVATION if name in FLAT else Family.FUNCTION, example=example,
              spreads=lambda attributes, i: name in STEEP or _is_root(attributes.get("exponent")))  # fmt: skip


def _is_root(exponent: object) -> bool:
    return isinstance(exponent, (int, float)) and not isinstance(exponent, bool) and exponent < 1 and exponent != 0


def _all(signature: str, *targets: Any) -> tuple[Spelling, ...]:
    return tuple(Spelling(target, signature) for target in targets)


def _form(cls: type[nn.Module], *names: str, make: Callable[[Any], nn.Module] = lambda cls: cls()) -> ModuleForm:  # type: ignore[no-any-return]
    return ModuleForm(cls, {}, lambda module: {name: getattr(module, name) for name in names}, make=make)


ROWS = (
    *(_row(name, getattr(torch, name), "x", (*_all("input:x", getattr(torch, name), name), *_all("input:x", *ALIASES.get(name, ()))))
      for name in PLAIN),
    _row("abs", torch.abs, "x", (*_all("input:x", torch.abs, torch.absolute), operator.abs, "abs", "absolute")),
    _row("neg", torch.neg, "x", (*_all("input:x", torch.neg, torch.negative), operator.neg, "neg", "negative")),
    _row("pow", torch.pow, "x exponent", _all("input:x exponent", torch.pow, operator.pow, "pow"), exponent=2),
    _row("round", torch.round, "x decimals=0", _all("input:x decimals=0", torch.round, "round", torch.special.round), decimals=1),
    _row("remainder", torch.remainder, "x other", _all("input:x other", torch.remainder, operator.mod, "remainder"), other=0.7),
    _row("fmod", torch.fmod, "x other", _all("input:x other", torch.fmod, "fmod"), other=0.7),
    _row("floor_divide", torch.floor_divide, "x other", _all("input:x other", torch.floor_divide, operator.floordiv, "floor_divide"),
         other=0.7),
    _row("logit", torch.logit, "x eps=None", _all("input:x eps=None", torch.logit, "logit", torch.special.logit), eps=1e-2),
    _row("nan_to_num", torch.nan_to_num, "x nan=0.0 posinf=None neginf=None",
         _all("input:x nan=0.0 posinf=None neginf=None", torch.nan_to_num, "nan_to_num"), nan=1.0, posinf=2.0, neginf=-2.0),
    _row("threshold", torch.threshold, "x threshold value",
         (*_all("input:x threshold value _inplace=False", F.threshold), *_all("input:x threshold value", torch.threshold)),
         _form(nn.Threshold, "threshold", "value", make=lambda cls: cls(0.1, -0.5)), threshold=0.1, value=-0.5),
    _row("hardshrink", torch.hardshrink, "x lambd=0.5",
         _all("input:x lambd=0.5", *{F.hardshrink, torch.hardshrink}, "hardshrink"),
         _form(nn.Hardshrink, "lambd", make=lambda cls: cls(0.1)), lambd=0.1),
    _row("softshrink", F.softshrink, "x lambd=0.5", _all("input:x lambd=0.5", F.softshrink), _form(nn.Softshrink, "lambd"), lambd=0.1),
    _row("tanhshrink", F.tanhshrink, "x", _all("input:x", F.tanhshrink), ModuleForm(nn.Tanhshrink)),
    _row("rrelu", F.rrelu, "x lower=0.125 upper=0.3333333333333333", (
        *_all("input:x lower=0.125 upper=0.3333333333333333 !training=False _inplace=False", F.rrelu),
        *_all("input:x lower=0.125 upper=0.3333333333333333 !training=False", torch.rrelu)),
         _form(nn.RReLU, "lower", "upper"), lower=0.1, upper=0.3),
    _row("selu", F.selu, "x", (*_all("input:x _inplace=False", F.selu), *_all("input:x", torch.selu)), ModuleForm(nn.SELU)),
    _row("softsign", F.softsign, "x", _all("input:x", F.softsign), ModuleForm(nn.Softsign)),
    _row("logsigmoid", F.logsigmoid, "x", _all("input:x", F.logsigmoid), ModuleForm(nn.LogSigmoid)),
)  # fmt: skip
