"""Activations that a model writes out, as the one op that they are: one rounding instead of one for each step, and one kernel.

sigmoid(x) x -> silu(x);  tanh(softplus(x)) x -> mish(x);  relu6(x + 3) / 6 -> hardsigmoid(x), where the clamp stands in the sum as its
bounds;  hardsigmoid(x) x and relu6(x + 3) x / 6 -> hardswish(x);  x (1 + erf(x / sqrt(2))) / 2 -> gelu(x);
x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 -> gelu(x, approximate="tanh").
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import fx

from qcompiler.compile.rewrite import Link, Match, Reject, Rule, becomes
from qcompiler.ir.types import value_of

RELU6 = Link("clamped", ("add",), ("x", 3.0), {"bounds": (0.0, 6.0)})


def _is_float(match: Match, x: object, **known: object) -> None:
    dtype = value_of(x).dtype if isinstance(x, fx.Node) else None
    if dtype is not None and not dtype.is_floating_point:
        raise Reject("not-float", "it computes with integers")


def _sixth(of: str, name: str) -> tuple[Link, Link]:
    """The two ways to write a sixth of a value."""
    return Link(name, ("div",), (of, 6.0), {}), Link(name, ("mul",), (of, 1 / 6), {})


def _rules(name: str, function: Any, *patterns: tuple[Link, ...]) -> tuple[Rule, ...]:
    return tuple(Rule(name, pattern, becomes(function, "x"), check=_is_float, joins_ops=True) for pattern in patterns)


SILU = Rule(
    "silu",
    (
        Link("gate", ("sigmoid",), ("x",)),
        Link("product", ("mul",), ("x", "gate"), {}),
    ),
    becomes(F.silu, "x"), check=_is_float, joins_ops=True,
)  # fmt: skip
MISH = _rules("mish", F.mish, (
    Link("soft", ("softplus",), ("x",), {}), Link("gate", ("tanh",), ("soft",)), Link("product", ("mul",), ("x", "gate"), {}),
))  # fmt: skip
HARDSIGMOID = _rules("hardsigmoid", F.hardsigmoid, *((RELU6, sixth) for sixth in _sixth("clamped", "part")))
HARDSWISH = _rules(
    "hardswish", F.hardswish,
    (Link("gate", ("hardsigmoid",), ("x",)), Link("product", ("mul",), ("x", "gate"), {})),
    *((RELU6, Link("product", ("mul",), ("x", "clamped"), {}), sixth) for sixth in _sixth("product", "part")),
)  # fmt: skip


def _half_by(sum_of: tuple[Link, ...]) -> list[tuple[Link, ...]]:
    """The orders in which x / 2 times the sum that these links end in is written."""
    last = Link("sum", ("add",), (sum_of[-1].name, 1.0), {})
    orders = ((("x", 0.5), ("part", "sum")), (("x", "sum"), ("part", 0.5)), (("sum", 0.5), ("x", "part")))
    return [(*sum_of, last, Link("part", ("mul",), first, {}), Link("product", ("mul",), second, {})) for first, second in orders]


ERF = [
    (Link("scaled", (op,), ("x", factor), {}), Link("curve", ("erf",), ("scaled",))) for op, factor in (("div", 2**0.5), ("mul", 0.5**0.5))
]
CUBIC = (
    Link("cube", ("pow",), ("x",), {"exponent": 3}), Link("share", ("mul",), ("cube", 0.044715), {}),
    Link("bent", ("add",), ("x", "share"), {}), Link("scaled", ("mul",), ("bent", math.sqrt(2 / math.pi)), {}),
    Link("curve", ("tanh",), ("scaled",)),
)  # fmt: skip
GELU = _rules("gelu", F.gelu, *(pattern for curve in ERF for pattern in _half_by(curve)))
GELU_TANH = tuple(
    Rule("gelu_tanh", pattern, becomes(F.gelu, "x", approximate="tanh"), check=_is_float, joins_ops=True) for pattern in _half_by(CUBIC)
)
RULES = (SILU, *MISH, *HARDSIGMOID, *HARDSWISH, *GELU, *GELU_TANH)
