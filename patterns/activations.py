"""Activations that a model writes out, as the one op that they are: one rounding instead of one for each step, and one kernel.

sigmoid(x) x -> silu(x);  tanh(softplus(x)) x -> mish(x);  relu6(x + 3) / 6 -> hardsigmoid(x), where the clamp stands in the sum as its
bounds;  hardsigmoid(x) x and relu6(x + 3) x / 6 -> hardswish(x).
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import fx

from qcompiler.ir.types import value_of
from qcompiler.rewrite import Link, Match, Reject, Rule, becomes

RELU6 = Link("clamped", ("add",), ("x", 3.0), {"bounds": (0.0, 6.0)})


def _is_float(match: Match, x: Any, **known: Any) -> None:
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

RULES = (SILU, *MISH, *HARDSIGMOID, *HARDSWISH)
