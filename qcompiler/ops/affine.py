"""A product, quotient, sum or difference of a value and a constant, as a factor and an offset for each channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qcompiler.ir.types import QUANT, quant_of, value_of
from qcompiler.ops.spec import CONVOLUTIONS, Family, Op
from qcompiler.ops.stays_float import constant
from qcompiler.ops.table import Table

NAMES = ("add", "sub", "mul", "div")


@dataclass(frozen=True, eq=False)
class Affine:
    """x * factor + offset: float64, one number, or one for each channel."""

    factor: Tensor
    offset: Tensor

    @property
    def is_one_number(self) -> bool:
        """Whether all channels have the same."""
        return self.factor.numel() == 1 and self.offset.numel() == 1


def channel_dimension(row: Op, node: fx.Node) -> int | None:
    """Along which dimension the channels of the result of an op with a weight lie; None of other ops."""
    family, shape = row.settled.family, value_of(node).shape
    if shape is None or not shape:
        return None
    if family is Family.LINEAR:
        return len(shape) - 1
    dims = row.settled.dims
    return len(shape) - dims - 1 if family in CONVOLUTIONS and dims is not None else None


def affine_of(user: fx.Node, value: fx.Node, dimension: int, table: Table) -> Affine | None:
    """What a call makes of `value`, whose channels lie along `dimension`: None where that is not affine with constants, or changes the
    shape."""
    row = table.of(user)
    if row is None or row.name not in NAMES or len(user.args) < 2 or value_of(user).shape != value_of(value).shape:
        return None
    swapped = user.args[0] is not value
    other = _numbers(user.args[0] if swapped else user.args[1], value, dimension)
    alpha = user.kwargs.get("alpha", 1)
    if other is None or user.all_input_nodes.count(value) != 1 or not isinstance(alpha, (int, float)):
        return None
    one, none = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    if row.name == "mul":
        return Affine(other, none)
    if row.name == "div":
        return None if swapped else Affine(1 / other, none)
    sign = -1.0 if row.name == "sub" else 1.0
    return Affine(one * sign * alpha, other) if swapped else Affine(one, other * sign * alpha)


def _numbers(operand: object, value: fx.Node, dimension: int) -> Tensor | None:
    """A constant operand as one float64 number or one for each channel of `value`."""
    if isinstance(operand, bool):
        return None
    if isinstance(operand, (int, float)):
        return torch.tensor([float(operand)], dtype=torch.float64)
    if not isinstance(operand, fx.Node) or operand is value:
        return None
    if not _is_of_channels(value_of(operand).shape, value_of(value).shape or (), dimension):
        return None
    held = constant(operand)
    return held.double().reshape(-1) if isinstance(held, Tensor) and held.dtype is torch.float32 else None


def _is_of_channels(own: tuple[int, ...] | None, shape: tuple[int, ...], dimension: int) -> bool:
    """Whether an operand of a shape is one number, or one for each channel, of a value of `shape`."""
    if own is None or len(own) > len(shape):
        return False
    spread = (1,) * (len(shape) - len(own)) + own
    return all(size == 1 or (at == dimension and size == shape[at]) for at, size in enumerate(spread))


def source_of_folded(node: fx.Node) -> fx.Node:
    """The value that a noted call computes with."""
    return next(value for value in node.args[:2] if isinstance(value, fx.Node) and quant_of(value).float_output)


def base_of(node: fx.Node) -> fx.Node:
    """The op with a weight that a noted call becomes part of; any other node is its own."""
    while quant_of(node).folded:
        node = source_of_folded(node)
    return node


def let_go(node: fx.Node) -> None:
    """Takes the note of a call back."""
    source = source_of_folded(node)
    source.meta[QUANT] = quant_of(source).with_(float_output=False)
    node.meta[QUANT] = quant_of(node).with_(folded=False)
