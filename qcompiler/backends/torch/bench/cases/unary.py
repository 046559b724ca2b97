"""Functions of single values, and softmax, on all codes and in several layouts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from qcompiler.backends.torch.bench.cases.case import Recipe, activation, laid_out

UNARY: dict[str, tuple[dict[str, object], ...]] = {
    **dict.fromkeys(("sigmoid", "hardsigmoid", "tanh", "silu", "mish", "hardswish", "relu", "softsign", "abs", "exp"), ({},)),
    "pow": ({"exponent": 2}, {"exponent": 3}),
    "hardshrink": ({"lambd": 0.3},),
    "gelu": ({}, {"approximate": "tanh"}),
    "softplus": ({}, {"beta": 2.0}),
    "leaky_relu": ({}, {"negative_slope": 0.2}),
    "elu": ({}, {"alpha": 0.7}),
    "celu": ({}, {"alpha": 0.7}),
    "clamp": ({"min": -0.3, "max": 1.0}, {"min": 0.2}, {"max": 0.5}),
    "softmax": ({"dim": 1}, {"dim": -1}),
}


def _all_codes(high: int, scale: float, zero_point: int) -> Tensor:
    full = torch.arange(high + 1, dtype=torch.uint8).reshape(1, -1, 1, 1)
    return torch._make_per_tensor_quantized_tensor(full, scale, zero_point)


def _in(layout: str, high: int) -> Tensor:
    return laid_out(activation((2, 8, 6, 5), high, scale=0.06), layout)


def unary_recipes(high: int, extreme: bool) -> Iterator[Recipe]:
    del extreme
    inputs = {
        "all codes": partial(_all_codes, high, 0.05, high // 2),
        "fine scale": partial(_all_codes, high, 0.003, high // 3),
        "view": partial(_in, "view", high),
        "channels_last": partial(_in, "channels_last", high),
        "no batch": partial(activation, (0, 8, 6, 5), high),
        "rows": partial(activation, (1, 1000), high, scale=0.06),
    }
    for label, x in inputs.items():
        for op, settings in UNARY.items():
            yield from (Recipe(op, f"{label} {attributes or ''}".strip(), (x,), attributes) for attributes in settings)
    for label in ("view", "no batch"):
        yield Recipe("prelu", label, (inputs[label], _slopes))


def _slopes() -> Tensor:
    return torch.rand(8) - 0.3
