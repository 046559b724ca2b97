"""Ops behind conv1d work along its memory: f(x, y) = f(x^T, y^T)^T where f takes single values, ^T swaps channels and steps.

conv1d hands out (N, C, L) as rows of channels: the strides of (N, L, C). torch's int8 kernels allocate their results with ordinary
strides, so they go element by element: the sum of 64 x 1000 values takes 605 us, of the transposed views 28 (one thread, AVX-512). The
result stays in rows, as the next conv1d wants it. What is said of the memory here is a guess of what is fast, never a condition: the
values are right for any strides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from qcompiler.backends.torch.runtime import functions
from qcompiler.backends.torch.site import Emit, Kernel, Operand, Site
from qcompiler.ir.types import value_of
from qcompiler.ops.reference import dequantize
from qcompiler.ops.spec import Family
from qcompiler.ops.table import Table

TRANSPOSE = torch.ops.aten.transpose.int
CLAMP = torch.ops.aten.clamp.default  # what a convolution's bounds may end in
CONV = (torch.ops.quantized.conv1d.default, torch.ops.quantized.conv1d_relu.default)
VIEWS = ("getitem", "narrow", "identity", "detach")  # rows cut short are rows
TURNS, RESHAPES = ("transpose", "permute"), ("reshape", "unflatten", "flatten", "unsqueeze", "squeeze", *VIEWS)
OPERANDS = {"add": 2, "sub": 2, "mul": 2, "div": 2, "maximum": 2, "minimum": 2, "relu": 1, "clamp": 1}
ROWS = "rows"  # key of node.meta: where the value lies in rows


def emit_along(kernel: Kernel, site: Site, emit: Emit) -> fx.Node:
    """The kernel's result for the site, computed along the rows of its operands where one of them has any."""
    turns = any(in_rows(x.node) for x in _operands(site))
    result = kernel.emit(_turned(site, emit) if turns else site, emit)
    if result.target is CLAMP and isinstance(result.args[0], fx.Node) and _gives_rows(result.args[0]):
        with emit.graph.inserting_before(result):
            result.args = (emit.call(TRANSPOSE, result.args[0], 1, 2), *result.args[1:])
        turns = True
    if turns:
        result = emit.call(TRANSPOSE, result, 1, 2)
    cut = site.op.name in VIEWS and isinstance(site.args[0], Operand) and in_rows(site.args[0].node)
    note_rows(result, turns or cut or _gives_rows(result))
    return result


def _gives_rows(node: fx.Node) -> bool:
    """Whether a kernel hands out rows."""
    return node.target in CONV or in_rows(node)


def in_rows(node: fx.Node) -> bool:
    """Whether a value of the lowered graph lies in rows of channels."""
    return bool(node.meta.get(ROWS))


def note_rows(node: fx.Node, value: bool) -> None:
    """Says whether a value of the lowered graph lies in rows of channels."""
    node.meta[ROWS] = value


def is_turned(node: fx.Node, table: Table) -> bool:
    """Whether a float value is a transposed one in another shape: its channels may lie innermost."""
    row = table.of(node)
    while row is not None and row.name in (*TURNS, *RESHAPES) and isinstance(node.args[0], fx.Node):
        if row.name in TURNS:
            return True
        node = node.args[0]
        row = table.of(node)
    return False


def quantizer(node: fx.Node, turned: bool, table: Table) -> Callable[..., Any]:
    """What quantizes a float value, in the layout that suits its readers. `turned`: whether `is_turned` says so."""
    value = node.args[0]
    if isinstance(value, fx.Node) and value.op == "get_attr":
        return functions.quantize_constant
    if turned:
        return functions.quantize_along
    return functions.quantize_as_images if _meets_images(node, table) else torch.quantize_per_tensor


def _meets_images(node: fx.Node, table: Table) -> bool:
    """Whether a convolution of images reads a quantized value, and so do other ops: these may meet what convolutions hand on."""
    rows = [row for read in node.users if read.target is dequantize for user in read.users if (row := table.of(user)) is not None]
    convolved = [row.settled.family is Family.CONVOLUTION for row in rows]
    return any(convolved) and not all(convolved) and len(value_of(node.args[0]).shape or ()) in (4, 5)  # type: ignore[arg-type]


def _operands(site: Site) -> Sequence[Operand]:
    """The activations of an op that may run transposed, all of rank 3; empty for others."""
    name = site.op.name
    args, nodes = site.args, site.node.args
    if name == "cat":
        args, nodes = tuple(args[0]), tuple(nodes[0])  # type: ignore[arg-type]
    elif not site.op.elementwise and name not in OPERANDS:
        return ()
    found = [(a, n) for a, n in zip(args[: OPERANDS.get(name, len(args))], nodes, strict=False) if not isinstance(a, (int, float, bool))]
    ranks = [len(value_of(n).shape or ()) if isinstance(a, Operand) and isinstance(n, fx.Node) else None for a, n in found]
    return [a for a, _ in found] if all(rank == 3 for rank in ranks) else ()


def _turned(site: Site, emit: Emit) -> Site:
    """The site on transposed operands, all in rows."""

    def turn(x: object) -> object:
        if not isinstance(x, Operand):
            return x
        turned = emit.call(TRANSPOSE, x, 1, 2)
        return Operand(turned if in_rows(x.node) else emit.call(torch.ops.aten.contiguous.default, turned), x.qparams)

    if site.op.name != "cat":
        return replace(site, args=tuple(map(turn, site.args)))
    dim = int(site.args[1] if len(site.args) > 1 else site.get("dim", 0))
    attributes = {name: value for name, value in site.attributes.items() if name != "dim"}
    return replace(site, args=(list(map(turn, site.args[0])), (0, 2, 1)[dim]), attributes=attributes)
