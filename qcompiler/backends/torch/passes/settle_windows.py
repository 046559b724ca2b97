"""oneDNN's float convolutions crash on values that lie channels_last, as int8 kernels hand them out, where a window lies in the padding.

Of 900 random geometries (torch 2.13, AVX-512 and AVX2, with a bias) 36 ended in SIGSEGV: all dilated, with padding as wide as the window
or wider. The float model, whose values are contiguous, computes them. So such a convolution that stays float takes a contiguous copy.
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
    found = [node for node in graph.nodes if _crashes(node, table)]
    for node in found:
        x = node.args[0]
        assert isinstance(x, fx.Node)
        with graph.inserting_before(node):
            copied = graph.call_method("clone", (x,), {"memory_format": torch.contiguous_format})
        copied.meta[VALUE], copied.meta[SOURCE] = value_of(x), source_of(node)
        node.args = (copied, *node.args[1:])
    return len(found)


def _crashes(node: fx.Node, table: Table) -> bool:
    row = table.of(node)
    if row is None or row.family is not Family.CONVOLUTION or row.dims is None or not isinstance(node.args[1], fx.Node):
        return False
    kernel = (value_of(node.args[1]).shape or ())[2:]
    padding, dilation = (_each(node.kwargs.get(name, default), row.dims) for name, default in (("padding", 0), ("dilation", 1)))
    return len(kernel) == row.dims and any(d > 1 for d in dilation) and overpads(kernel, padding, dilation)


def _each(value: object, dims: int) -> Sequence[int]:
    """A number for each dimension; of padding that is named, none that is as wide as the window."""
    numbers = list(value) if isinstance(value, (tuple, list)) else [value]
    plain = [n for n in numbers if isinstance(n, int)]
    return plain * dims if len(plain) == 1 else plain if len(plain) == dims else [0] * dims
