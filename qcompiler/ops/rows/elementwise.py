"""Arithmetic of two values, activations and other functions of single values."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from qcompiler.ir.types import QParams
from qcompiler.ops import functional as Q
from qcompiler.ops import macs
from qcompiler.ops.example import IMAGE, Example
from qcompiler.ops.spec import Family, ModuleForm, Op, Output, Param, Role, Spelling, always

X, Y = Param("x"), Param("other")
UNIT = QParams(1 / 256, 0, 0, 255, torch.uint8)  # [0, 1): sigmoid, hardsigmoid, softmax
SIGNED_UNIT = QParams(2 / 256, 128, 0, 255, torch.uint8)  # [-1, 1): tanh


PAIR = Example((IMAGE, IMAGE))


def _binary(name: str, fn: Any, spellings: tuple[Any, ...], signature: str = "x other", **more: Any) -> Op:
    more = {"example": PAIR, "takes_bounds": True, **more}
    return Op(
        name=name, fn=fn, signature=signature, params=(X, Y), output=Output.OWN, spellings=spellings, family=Family.ARITHMETIC, **more
    )


def _bounds(attributes: Mapping[str, Any]) -> tuple[float | None, float | None]:
    return attributes.get("min"), attributes.get("max")


def _leaves_range(attributes: Mapping[str, object]) -> bool:
    """A quantized range always holds 0; a limit on the other side of it may lie outside."""
    low, high = _bounds(attributes)
    numbers = all(v is None or isinstance(v, (int, float)) for v in (low, high))
    return not numbers or (low is not None and low > 0) or (high is not None and high < 0)


def _inplace(*functions: Any) -> tuple[Spelling, ...]:
    return tuple(Spelling(f, "input:x _inplace=False") for f in functions)


TWICE = Example((IMAGE, IMAGE), attributes={"alpha": 2})
ALPHA = "input:x other alpha=1"
OTHER = "input:x other"

ARITHMETIC = (
    _binary("add", Q.add, (operator.add, operator.iadd, Spelling(torch.add, ALPHA), Spelling("add", ALPHA), Spelling("add_", ALPHA),
                           Spelling("__add__", OTHER), Spelling("__radd__", OTHER)), "x other alpha=1",
            commutes=lambda attributes: attributes.get("alpha", 1) == 1, homogeneous=always, example=TWICE),
    _binary("sub", Q.sub, (operator.sub, operator.isub, Spelling(torch.sub, ALPHA), Spelling(torch.subtract, ALPHA),
                           Spelling("sub", ALPHA), Spelling("subtract", ALPHA), Spelling("sub_", ALPHA),
                           Spelling(torch.rsub, "input:other other:x alpha=1")), "x other alpha=1", homogeneous=always, example=TWICE),
    _binary("mul", Q.mul, (operator.mul, operator.imul, Spelling(torch.mul, OTHER), Spelling(torch.multiply, OTHER),
                           Spelling("mul", OTHER), Spelling("multiply", OTHER), Spelling("mul_", OTHER)),
            commutes=lambda attributes: True),
    _binary("div", Q.div, (operator.truediv, operator.itruediv, *(Spelling(f, OTHER) for f in (torch.true_divide, "true_divide")),
                           *(Spelling(f, f"{OTHER} !rounding_mode=None") for f in (torch.div, torch.divide, "div", "divide", "div_"))),
            spreads=lambda attributes, i: i == 1, example=Example((IMAGE, IMAGE), positive=True)),
    _binary("matmul", Q.matmul, (operator.matmul, Spelling(torch.matmul, OTHER), Spelling("matmul", OTHER),
                                 *(Spelling(f, "input:x mat2:other") for f in (torch.bmm, "bmm", torch.mm, "mm")),
                                 *(Spelling(f, "input:x vec:other") for f in (torch.mv, "mv"))),
            macs=macs.product_at(0, "x"), float_inside=True, example=Example(((2, 5, 8), (2, 8, 3)))),
    *(_binary(name, fn, (Spelling(fn, OTHER), Spelling(name, OTHER)), takes_bounds=False, commutes=lambda attributes: True,
              homogeneous=always)
      for name, fn in (("maximum", torch.maximum), ("minimum", torch.minimum))),
)  # fmt: skip

CLAMPS = (
    Op(
        name="relu", fn=torch.relu, signature="x", params=(X,), output=Output.SAME, clamp=lambda attributes: (0.0, None),
        family=Family.CLAMP, homogeneous=always, example=Example(),
        spellings=(torch.relu, torch.relu_, Spelling(F.relu, "input:x _inplace=False"), "relu", "relu_"),
        modules=(ModuleForm(nn.ReLU),),
    ),
    Op(
        name="clamp", fn=Q.clamp, signature="x min=None max=None", params=(X,), output=Output.SAME, clamp=_bounds,
        adds_values=_leaves_range, family=Family.CLAMP, example=Example(attributes={"min": -0.5, "max": 0.75}),
        spellings=(
            *(Spelling(f, "input:x min=None max=None") for f in (torch.clamp, torch.clip, "clamp", "clamp_", "clip")),
            Spelling(F.relu6, "input:x _inplace=False", {"min": 0.0, "max": 6.0}),
            Spelling(F.hardtanh, "input:x min_val:min=-1.0 max_val:max=1.0 _inplace=False"),
            Spelling(torch.clamp_min, "input:x min"), Spelling(torch.clamp_max, "input:x max"),
            Spelling("clamp_min", "input:x min"), Spelling("clamp_max", "input:x max"),
        ),
        modules=(
            ModuleForm(nn.ReLU6, {}, lambda m: {"min": 0.0, "max": 6.0}),
            ModuleForm(nn.Hardtanh, {}, lambda m: {"min": m.min_val, "max": m.max_val}, make=lambda cls: cls(-0.5, 0.75)),
        ),
    ),
)  # fmt: skip


def _unary(name: str, fn: Any, spellings: tuple[Any, ...], *modules: ModuleForm, signature: str = "x", **more: Any) -> Op:
    row = {"output": Output.OWN, "elementwise": True, "family": Family.ACTIVATION, "example": Example(), **more}
    return Op(name=name, fn=fn, signature=signature, params=(X,), spellings=spellings, modules=modules, **row)


def _fixed(name: str, fn: object, spellings: tuple[object, ...], cls: type[nn.Module], qparams: QParams) -> Op:
    return _unary(name, fn, spellings, ModuleForm(cls), output=Output.FIXED, fixed=qparams)


HALF = Example(attributes={"alpha": 0.5})
ACTIVATIONS = (
    _fixed("sigmoid", torch.sigmoid, (torch.sigmoid, torch.sigmoid_, F.sigmoid, torch.special.expit, "sigmoid", "sigmoid_"),
           nn.Sigmoid, UNIT),
    _fixed("hardsigmoid", F.hardsigmoid, _inplace(F.hardsigmoid), nn.Hardsigmoid, UNIT),
    _fixed("tanh", torch.tanh, (torch.tanh, torch.tanh_, F.tanh, "tanh", "tanh_"), nn.Tanh, SIGNED_UNIT),
    Op(
        name="softmax", fn=torch.softmax, signature="x dim", params=(X,), output=Output.FIXED, fixed=UNIT,
        family=Family.ACTIVATION, float_inside=True, example=Example(((2, 8),), attributes={"dim": -1}),
        spellings=(
            Spelling(F.softmax, "input:x dim=None !_stacklevel=3 !dtype=None"), Spelling(torch.softmax, "input:x dim !dtype=None"),
            Spelling("softmax", "input:x dim !dtype=None"),
        ),
        modules=(
            ModuleForm(nn.Softmax, {}, lambda m: {"dim": m.dim}, make=lambda cls: cls(-1)),
            ModuleForm(nn.Softmax2d, {}, lambda m: {"dim": -3}),
        ),
    ),
    _unary("hardswish", F.hardswish, _inplace(F.hardswish), ModuleForm(nn.Hardswish)),
    _unary("silu", F.silu, _inplace(F.silu), ModuleForm(nn.SiLU)),
    _unary("mish", F.mish, _inplace(F.mish), ModuleForm(nn.Mish)),
    _unary("gelu", F.gelu, (Spelling(F.gelu, "input:x approximate='none'"),),
           ModuleForm(nn.GELU, {}, lambda m: {"approximate": m.approximate}, make=lambda cls: cls("tanh")),
           signature="x approximate='none'", example=Example(attributes={"approximate": "tanh"})),
    _unary("softplus", F.softplus, (Spelling(F.softplus, "input:x beta=1 threshold=20"),),
           ModuleForm(nn.Softplus, {}, lambda m: {"beta": m.beta, "threshold": m.threshold}, make=lambda cls: cls(2, 10)),
           signature="x beta=1 threshold=20", example=Example(attributes={"beta": 2, "threshold": 10})),
    _unary("leaky_relu", F.leaky_relu, (Spelling(F.leaky_relu, "input:x negative_slope=0.01 _inplace=False"),),
           ModuleForm(nn.LeakyReLU, {}, lambda m: {"negative_slope": m.negative_slope}, make=lambda cls: cls(0.2)),
           signature="x negative_slope=0.01", homogeneous=always, example=Example(attributes={"negative_slope": 0.2})),
    _unary("elu", F.elu, (Spelling(F.elu, "input:x alpha=1.0 _inplace=False"),),
           ModuleForm(nn.ELU, {}, lambda m: {"alpha": m.alpha}, make=lambda cls: cls(0.5)), signature="x alpha=1.0", example=HALF),
    _unary("celu", F.celu, (Spelling(F.celu, "input:x alpha=1.0 _inplace=False"), Spelling(torch.celu, "input:x alpha=1.0")),
           ModuleForm(nn.CELU, {}, lambda m: {"alpha": m.alpha}, make=lambda cls: cls(0.5)), signature="x alpha=1.0", example=HALF),
    Op(
        name="prelu", fn=F.prelu, signature="input:x weight", params=(X, Param("weight", Role.BIAS)), output=Output.OWN,
        family=Family.ACTIVATION, example=Example((IMAGE,), {"weight": (8,)}), homogeneous=always,
        spellings=(F.prelu, "prelu"),
        modules=(ModuleForm(nn.PReLU, {"weight": "weight"}),),
    ),
)  # fmt: skip

ROWS = (*ARITHMETIC, *CLAMPS, *ACTIVATIONS)
