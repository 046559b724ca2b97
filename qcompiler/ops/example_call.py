"""The example of a row as a call: tests, measurements of kernels and docs/ops.md are made from it."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor

from qcompiler.ops.example import Example, Shape
from qcompiler.ops.spec import Op, Param, Role


def generator_of(name: str) -> torch.Generator:
    """A stream of random numbers that belongs to one name: what others draw does not change it."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def values_of(example: Example, generator: torch.Generator) -> list[Tensor]:
    """Activations of the example."""
    drawn = [torch.randn(shape, generator=generator) for shape in example.inputs]
    drawn = [x.abs() + 1.1 for x in drawn] if example.positive else drawn  # rounded to steps they are above 1, as acosh wants
    return [x.clamp(-0.9, 0.9) for x in drawn] if example.bounded else drawn


def parameter_of(name: str, shape: Shape, generator: torch.Generator) -> Tensor:
    """A float parameter; variances are positive."""
    value = torch.randn(shape, generator=generator)
    return value.abs() + 0.5 if name == "var" else value


def canonical_call(row: Op, example: Example, name: str = "") -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The canonical call of a row on float tensors: positional arguments in the order of the params, and attributes."""
    generator = generator_of(name or row.name)
    left = values_of(example, generator)
    args = [_argument(param, example, left, generator) for param in row.params]
    while args and args[-1] is None:
        args.pop()
    given = {param.name for param in row.params}
    return tuple(args), {key: value for key, value in example.attributes.items() if key not in given}


def _argument(param: Param, example: Example, left: list[Tensor], generator: torch.Generator) -> Any:
    if param.role is Role.ACTIVATIONS:
        return list(left)
    if param.role is Role.ACTIVATION:
        return left.pop(0) if left else None
    shapes: Any = example.tensors.get(param.name)
    if shapes is None:
        return example.attributes.get(param.name)
    if shapes and isinstance(shapes[0], tuple):
        return [parameter_of(param.name, shape, generator) for shape in shapes]
    return parameter_of(param.name, shapes, generator)


def call_text(row: Op) -> str:
    """The example as a reader would note it: conv2d(x[2,8,6,6], weight[6,8,3,3], bias[6], stride=2)."""
    example = row.example or Example()
    inputs = [shape_text(shape) for shape in example.inputs]
    words = []
    for param in row.params:
        shapes: Any = example.tensors.get(param.name)
        if param.role is Role.ACTIVATIONS:
            words.append(f"[{', '.join(inputs)}]")
        elif param.role is Role.ACTIVATION:
            words += [f"{param.name}{inputs.pop(0)}"] if inputs else []
        elif shapes is not None:
            lists = shapes and isinstance(shapes[0], tuple)
            words.append(f"{param.name}=[{', '.join(map(shape_text, shapes))}]" if lists else f"{param.name}{shape_text(shapes)}")
    words += [f"{key}={_plain(value)}" for key, value in example.attributes.items()]
    return f"{row.name}({', '.join(words)})"


def shape_text(shape: Shape) -> str:
    return f"[{','.join(map(str, shape))}]"


def _plain(value: object) -> str:
    return f"int{shape_text(tuple(value.shape))}" if isinstance(value, Tensor) else repr(value)
