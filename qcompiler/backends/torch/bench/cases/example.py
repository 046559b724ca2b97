"""The example of a row, in integers: what an op is measured on that has no cases of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.torch.bench.cases.case import Recipe, fixed, weight
from qcompiler.ops.example import Example
from qcompiler.ops.example_call import parameter_of, values_of
from qcompiler.ops.spec import Op, Output, Param, Role
from qcompiler.ops.table import OPS


def example_recipes(high: int, extreme: bool, known: Collection[str]) -> Iterator[Recipe]:
    """One recipe for each op with an int8 form that is none of `known`."""
    for row in OPS.rows.values():
        if (
            row.name not in known
            and row.example is not None
            and row.output is not Output.FLOAT
            and not row.identity(row.example.attributes)
        ):
            yield recipe_of(row, row.example, high, extreme)


def recipe_of(row: Op, example: Example, high: int, extreme: bool) -> Recipe:
    """The example with activations of codes 0..`high`, and int8 weights along the row's axis."""
    inputs = [partial(_codes, example, i, high) for i in range(len(example.inputs))]
    draws: list[Callable[[], Any]] = []
    for param in row.params:
        if param.role is Role.ACTIVATIONS:
            draws.append(lambda: [draw() for draw in inputs])
        else:
            draws.append(inputs.pop(0) if param.role is Role.ACTIVATION and inputs else _parameter(row, param, example, extreme))
    return Recipe(row.name, "example", tuple(draws), {k: v for k, v in example.attributes.items() if k not in example.tensors})


def _codes(example: Example, position: int, high: int) -> Tensor:
    """One activation, quantized to its own range."""
    x = values_of(example, _stream())[position]
    low, top = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (top - low) / high or 1.0
    codes = torch.clamp(torch.round((x - low) / scale), 0, high).to(torch.uint8)
    return torch._make_per_tensor_quantized_tensor(codes, scale, round(-low / scale))


def _parameter(row: Op, param: Param, example: Example, extreme: bool) -> Callable[[], object]:
    shape: Any = example.tensors.get(param.name)
    if shape is None:
        return fixed(None)
    if param.role is Role.WEIGHT:
        return partial(weight, shape, row.weight_axis, extreme)
    return lambda: parameter_of(param.name, shape, _stream())


def _stream() -> torch.Generator:
    """A generator that follows from the stream of the case."""
    return torch.Generator().manual_seed(int(torch.randint(2**31, ())))
