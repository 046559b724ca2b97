"""Multiply-accumulates of a call with the example inputs: for the rows that have weights, and for what has no row.

The products of sums of products alone: neither biases, nor softmax, nor elementwise arithmetic. What no formula here knows is counted by
torch, operator by operator (torch_macs).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import fx

from qcompiler.ir.types import value_of
from qcompiler.ops.float_statements import statement_of
from qcompiler.ops.reference import dequantize, dequantize_weight, quantize
from qcompiler.ops.torch_macs import counted_by_torch

if TYPE_CHECKING:
    from qcompiler.ops.spec import Op


def shape_of(value: object) -> tuple[int, ...]:
    """The shape of a node's value; () for what is no tensor."""
    return (value_of(value).shape or ()) if isinstance(value, fx.Node) else ()


def argument(node: fx.Node, position: int, name: str) -> Any:
    return node.args[position] if position < len(node.args) else node.kwargs.get(name)


def _results(node: fx.Node) -> int:
    shape = value_of(node).shape
    return 0 if shape is None else math.prod(shape)


def conv(node: fx.Node) -> int:
    """Each output value takes (I/g * kernel) products."""
    return _results(node) * math.prod(shape_of(argument(node, 1, "weight"))[1:])


def conv_transpose(node: fx.Node) -> int:
    """Each input value takes (O/g * kernel) products."""
    return math.prod(shape_of(argument(node, 0, "input"))) * math.prod(shape_of(argument(node, 1, "weight"))[1:])


def linear(node: fx.Node) -> int:
    return _results(node) * (shape_of(argument(node, 1, "weight"))[-1:] or (0,))[0]


def recurrent(node: fx.Node) -> int:
    """Every value of every weight takes part once for each row of the input (T * N)."""
    return math.prod(shape_of(node.args[0])[:-1]) * sum(math.prod(shape_of(w)) for w in _weights(node))


def _weights(node: fx.Node) -> list[object]:
    """The first list among the arguments."""
    return next((list(arg) for arg in node.args if isinstance(arg, (list, tuple))), [])


def product_at(position: int, name: str) -> Callable[[fx.Node], int]:
    """A product of matrices whose left one is that argument: each output value takes as many products as it has columns."""
    return lambda node: _results(node) * (shape_of(argument(node, position, name))[-1:] or (0,))[0]


def attention(node: fx.Node) -> int:
    """Queries (..., L, E) by keys (..., S, E), and weights (..., L, S) by values (..., S, V)."""
    query, key, value = (shape_of(argument(node, i, name)) for i, name in enumerate(("query", "key", "value")))
    if min(map(len, (query, key, value))) < 2:
        return 0
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def einsum(node: fx.Node) -> int:
    """As one sum over all letters: the product of their sizes. 0 where there is no second operand to multiply with."""
    equation, operands = node.args[0], node.args[1:]
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) < 2:
        return 0
    sizes: dict[str, int] = {}
    for term, operand in zip(equation.replace(" ", "").partition("->")[0].split(","), operands, strict=False):
        shape = shape_of(operand)
        letters = _letters(term, len(shape))
        sizes.update((letter, size) for letter, size in zip(letters, shape, strict=False) if size > sizes.get(letter, 0))
    return math.prod(sizes.values()) * (len(operands) - 1)


def _letters(term: str, dims: int) -> list[str]:
    """One letter for each dimension; those under `...` are counted from the right, as they broadcast."""
    before, dots, after = term.partition("...")
    covered = dims - len(before) - len(after) if dots else 0
    return [*before, *(f".{covered - i}" for i in range(covered)), *after]


def bilinear(node: fx.Node) -> int:
    """x1 W x2 for each output: two sums, the inner one over the first input."""
    weight = shape_of(argument(node, 2, "weight"))
    rows = math.prod(shape_of(node)[:-1])
    return rows * (math.prod(weight) + math.prod(weight[::2])) if len(weight) == 3 else 0


def _summed(node: fx.Node) -> int:
    """addbmm: the products of a batch (b, n, m) by (b, m, p), summed into one (n, p)."""
    left = shape_of(argument(node, 1, "batch1"))
    return _results(node) * math.prod(left[::2]) if len(left) == 3 else 0


# Functions and methods that no row claims; they run in float.
FLOAT: dict[Any, Callable[[fx.Node], int]] = {
    F.scaled_dot_product_attention: attention,
    torch.einsum: einsum,
    F.bilinear: bilinear,
    F.linear: linear,
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), conv),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), conv_transpose),
    **dict.fromkeys((torch.mm, torch.mv, torch.dot, torch.inner, torch.vdot, torch.bmm, torch.matmul), product_at(0, "input")),
    **dict.fromkeys(("mm", "mv", "dot", "inner", "vdot", "bmm", "matmul", "__rmatmul__"), product_at(0, "self")),
    **dict.fromkeys((torch.addmm, "addmm"), product_at(1, "mat1")),
    **dict.fromkeys((torch.addmv, "addmv"), product_at(1, "mat")),
    **dict.fromkeys((torch.baddbmm, "baddbmm"), product_at(1, "batch1")),
    **dict.fromkeys((torch.addbmm, "addbmm"), _summed),
    **dict.fromkeys((quantize, dequantize, dequantize_weight), lambda _: 0),  # they round and scale; a graph has one for each value
}


def float_macs(node: fx.Node) -> int | None:
    """The multiply-accumulates of a call that has no row; None where they are not known: a module that is called as a whole, a
    statement that runs as it stands, a function that torch cannot count."""
    if node.op == "call_module" or statement_of(node.target) is not None:
        return None
    try:
        count = FLOAT.get(node.target)
    except TypeError:  # an unhashable callable
        count = None
    return count(node) if count is not None else counted_by_torch(node)


def macs_of(node: fx.Node, row: Op | None) -> int | None:
    """The multiply-accumulates of any call of a graph up to QUANTIZED, given its row: what every report counts by."""
    if row is None:
        return float_macs(node)
    return row.macs(node) if row.macs is not None else 0
