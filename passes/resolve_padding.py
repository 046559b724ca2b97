"""Convolution arguments as kernels take them: tuples of ints, 'same' and padding modes as an explicit pad before the op."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.types import SOURCE, VALUE, Stage, Value, source_of, value_of
from qcompiler.ops import functional
from qcompiler.ops.spec import CONVOLUTIONS


@dataclass(frozen=True)
class ResolvePadding:
    name: str = "resolve_padding"
    stage: Stage = Stage.TRACED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        changed = False
        for node in list(gm.graph.nodes):
            row = context.table.of(node)
            if row is not None and row.family in CONVOLUTIONS and row.dims is not None:
                changed |= _resolve(gm, node, row.dims)
        return changed


def _tuple(value: object, dims: int) -> tuple[Any, ...]:
    if isinstance(value, (tuple, list)):
        return tuple(value) if len(value) == dims else tuple(value) * dims
    return (value,) * dims


def _sides(node: fx.Node, dims: int, dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Padding before and after, per spatial dimension."""
    padding = node.kwargs.get("padding", 0)
    if padding == "valid":
        return ((0, 0),) * dims
    if padding != "same":
        return tuple((p, p) for p in _tuple(padding, dims))
    shape = value_of(node.args[1]).shape if isinstance(node.args[1], fx.Node) else None
    totals = [d * (k - 1) for d, k in zip(dilation, (shape or ())[2:], strict=True)]
    return tuple((t // 2, t - t // 2) for t in totals)


def _resolve(gm: fx.GraphModule, node: fx.Node, dims: int) -> bool:
    kwargs = dict(node.kwargs)
    names = [n for n in ("stride", "dilation", "output_padding") if n in kwargs]
    kwargs.update({n: _tuple(kwargs[n], dims) for n in names})
    sides = _sides(node, dims, _tuple(kwargs.get("dilation", 1), dims))
    mode = kwargs.pop("padding_mode", "zeros")
    if mode != "zeros" or any(a != b for a, b in sides):
        node.args = (_pad(gm, node, sides, "constant" if mode == "zeros" else str(mode)), *node.args[1:])
        sides = ((0, 0),) * dims
    if any(a for a, _ in sides):
        kwargs["padding"] = tuple(a for a, _ in sides)
    else:
        kwargs.pop("padding", None)
    changed = kwargs != node.kwargs
    node.kwargs = kwargs
    return changed


def _pad(gm: fx.GraphModule, node: fx.Node, sides: tuple[tuple[int, int], ...], mode: str) -> fx.Node:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    flat = tuple(p for side in reversed(sides) for p in side)
    kwargs: dict[str, Any] = {"pad": flat} | ({} if mode == "constant" else {"mode": mode})
    with gm.graph.inserting_before(node):
        pad = gm.graph.create_node("call_function", functional.pad, (x,), kwargs, name=f"{node.name}_pad")
    value = value_of(x)
    shape = value.shape and (*value.shape[: -len(sides)], *(n + a + b for n, (a, b) in zip(value.shape[-len(sides) :], sides, strict=True)))
    pad.meta[VALUE], pad.meta[SOURCE] = Value(shape, value.dtype), replace(source_of(node), origin=(pad.name,))
    return pad
