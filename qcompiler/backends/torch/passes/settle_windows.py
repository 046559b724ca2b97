"""oneDNN's float convolutions that fail on values that lie channels_last, as int8 kernels hand them out, take a contiguous copy.

They crash where a window lies in the padding: of 900 random geometries (torch 2.13, AVX-512 and AVX2, with a bias) 36 ended in SIGSEGV, all
dilated, with padding as wide as the window or wider. And they read memory beside the image where it has one channel, the stride along the
width is 2 or more and the result is one column wide: 111 of 784 geometries of conv2d and conv3d were wrong (torch 2.13, AVX-512). The float
model, whose values are contiguous, computes both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from qcompiler.backends.torch.kernels.onednn_faults import overpads
from qcompiler.ir.types import SOURCE, VALUE, source_of, value_of
from qcompiler.ops.spec import Family
from qcompiler.ops.table import Table


def settle_windows(graph: fx.Graph, table: Table) -> int:
    """Copies before the float convolutions of a lowered graph that need them; returns how many."""
    found = [node for node in graph.nodes if _fails(node, table)]
    for node in found:
        x = node.args[0]
        assert isinstance(x, fx.Node)
        with graph.inserting_before(node):
            copied = graph.call_method("clone", (x,), {"memory_format": torch.contiguous_format})
        copied.meta[VALUE], copied.meta[SOURCE] = value_of(x), source_of(node)
        node.args = (copied, *node.args[1:])
    return len(found)


def _fails(node: fx.Node, table: Table) -> bool:
    """Whether a float convolution fails on such values at some size."""
    row, (x, weight) = table.of(node), (*node.args[:2], None, None)[:2]
    if row is None or row.family is not Family.CONVOLUTION or row.dims is None or not isinstance(weight, fx.Node):
        return False
    return _crashes(node, row.dims, weight) or (isinstance(x, fx.Node) and _reads_beside(node, row.dims, x, weight))


def _reads_beside(node: fx.Node, dims: int, x: fx.Node, weight: fx.Node) -> bool:
    shape, kernel = value_of(x).shape or (), (value_of(weight).shape or ())[2:]
    strides = _each(node.kwargs.get("stride", 1), dims)
    return dims > 1 and len(shape) > dims and shape[-dims - 1] == 1 and len(kernel) == dims and kernel[-1] > 1 and strides[-1] > 1


def _crashes(node: fx.Node, dims: int, weight: fx.Node) -> bool:
    kernel = (value_of(weight).shape or ())[2:]
    padding, dilation = (_each(node.kwargs.get(name, default), dims) for name, default in (("padding", 0), ("dilation", 1)))
    return len(kernel) == dims and any(d > 1 for d in dilation) and overpads(kernel, padding, dilation)


def _each(value: object, dims: int) -> Sequence[int]:
    """A number for each dimension; of padding that is named, none that is as wide as the window."""
    numbers = list(value) if isinstance(value, (tuple, list)) else [value]
    plain = [n for n in numbers if isinstance(n, int)]
    return plain * dims if len(plain) == 1 else plain if len(plain) == dims else [0] * dims
