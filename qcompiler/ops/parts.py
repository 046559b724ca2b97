"""Which channels of a result go where: a value that is only read in parts may have a scale for each part.

It is the result of an op with weights, in parts of its channels, of a cat, in parts along its dimension, or of a sum and the like, in parts
along any dimension that is cut: a class token beside its patches. The ops between are followed on a tensor that holds, for each value, a
number that stands for its channel. So chunk, split, slices, unbind, indices, and reshape and permute before any of them, are all the
same: parts are sets of channels that nobody reads together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompiler.ir.attributes import attribute
from qcompiler.ir.readers import readers
from qcompiler.ir.types import quant_of, value_of
from qcompiler.ops.arguments import asks_size, changes
from qcompiler.ops.spec import Family, Op, Output
from qcompiler.ops.table import Table

MAX_NODES = 256  # of copies behind one op: more is no pattern that parts help with


@dataclass(frozen=True)
class Part:
    """Channels that are read together, in order, and the first nodes that hold none but these."""

    channels: tuple[int, ...]
    nodes: tuple[fx.Node, ...]


def parts_of(gm: fx.GraphModule, producer: fx.Node, table: Table) -> tuple[Part, ...]:
    """The parts in which the result of an int8 op is read; none where somebody reads it whole, or nobody can tell."""
    row = table.of(producer)
    if row is None or not quant_of(producer).int8 or _is_read(producer, {}, table):
        return ()
    found = (_parts_along(producer, axis, table) for axis in _axes(gm, producer, row, table))
    return next((parts for parts in found if parts), ())


def _axes(gm: fx.GraphModule, producer: fx.Node, row: Op, table: Table) -> list[int]:
    """The dimensions along which the result may be read in parts, in the order in which they are tried."""
    if row.weight is not None:
        return [-1 if row.family is Family.LINEAR else 1] if _scales_by_channel(gm, producer, row) else []
    if row.output is Output.JOIN:
        dim: Any = producer.args[1] if len(producer.args) > 1 else producer.kwargs.get("dim", 0)
        return [int(dim)] if row.name == "cat" else []
    return list(range(len(value_of(producer).shape or ()))) if row.output is Output.OWN and _is_cut(producer, table) else []


def _is_cut(producer: fx.Node, table: Table) -> bool:
    """Whether a copy of the result holds less than all of it."""
    whole = math.prod(value_of(producer).shape or ())
    return any(math.prod(shape) < whole for node in _copies(producer, table) if (shape := value_of(node).shape) is not None)


def _parts_along(producer: fx.Node, axis: int, table: Table) -> tuple[Part, ...]:
    held = _channels_behind(producer, axis, table)
    if held is None:
        return ()
    reads = [held[node] for node in held if _is_read(node, held, table)]
    if not all(reads) or any(found is None for found in reads):
        return ()
    blocks = _disjoint([found for found in reads if found])
    return _parts(producer, held, blocks) if len(blocks) > 1 else ()


def _scales_by_channel(gm: fx.GraphModule, node: fx.Node, row: Op) -> bool:
    """Whether a factor for each output channel can be put into its weight and bias, which are its own."""
    quant, position = quant_of(node), row.weight
    if quant.float_output or position is None or row.weight_axis or row.output is not Output.OWN:
        return False
    tensors = [a for a in node.args[position:] if a is not None]
    own = all(isinstance(a, fx.Node) and a.op == "get_attr" and len(a.users) == 1 and len(readers(gm, str(a.target))) == 1 for a in tensors)
    bounds: Any = node.kwargs.get("bounds") or ()
    return own and all(bound in (None, 0) for bound in bounds)


def _channels_behind(producer: fx.Node, axis: int, table: Table) -> dict[fx.Node, tuple[int, ...] | None] | None:
    """The channels that each copy of the result holds (None for a tuple of copies), in the order of the graph.

    None where nobody can tell: an op computes with the values, or what a cut leaves depends on sizes beside the channels.
    """
    shape = value_of(producer).shape
    if shape is None or len(shape) < 2 or 0 in shape or shape[axis] < 2:
        return None
    count = shape[axis]
    values: dict[fx.Node, tuple[Any, Any]] = {producer: (_numbered(shape, axis, 1), _numbered(shape, axis, -1))}
    held: dict[fx.Node, tuple[int, ...] | None] = {producer: tuple(range(count))}
    copies = _copies(producer, table)
    if len(copies) > MAX_NODES:
        return None
    for node in copies:
        source: Any = node.args[0]
        try:
            made, flipped = (_run(node, value) for value in values[source])
            parts = [_channels(*pair, count) for pair in zip(_tensors(made), _tensors(flipped), strict=True)]
        except Exception:  # what cannot be run on sizes alone, or mixes channels, is no copy of some of them
            return None
        values[node], held[node] = (made, flipped), parts[0] if isinstance(made, Tensor) else None
        whole = held[source]
        if whole is not None and any(len(part) < len(whole) for part in parts) and not _is_static(values[source][0], len(whole)):
            return None
    return held


def _tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def _channels(value: Tensor, flipped: Tensor, count: int) -> tuple[int, ...]:
    """The channels in a value, which both ways of counting must agree on. ValueError where they do not."""
    found, other = (torch.zeros(count, dtype=torch.bool).index_fill_(0, v.reshape(-1).long(), True) for v in (value, flipped))
    if not torch.equal(found, other.flip(0)) or not bool((value == value.round()).all()):
        raise ValueError("it computes with the values")
    return tuple(found.nonzero().reshape(-1).tolist())


def _is_static(value: Tensor, channels: int) -> bool:
    """Whether channels alone decide where a value lies in the dimensions along which channels change: no size of the input does."""
    varied = [d for d in range(value.dim()) if not bool((value == value.narrow(d, 0, 1)).all())]
    return math.prod(value.shape[d] for d in varied) == channels


def _numbered(shape: tuple[int, ...], axis: int, order: int) -> Tensor:
    """Each value is its channel's number, counted from either end: an op that takes the larger of two is found out."""
    numbers = torch.arange(shape[axis], dtype=torch.float32)
    numbers = numbers if order > 0 else numbers.flip(0)
    view = [1] * len(shape)
    view[axis] = -1
    return numbers.view(view).expand(shape)


def _copies(producer: fx.Node, table: Table) -> list[fx.Node]:
    """The int8 ops that only copy the result, those of copies included, in the order of the graph."""
    found: dict[fx.Node, None] = {}
    left = [producer]
    while left and len(found) <= MAX_NODES:
        source = left.pop()
        new = [u for u in source.users if u not in found and _takes_first(u, source) and _is_copy(u, table.of(u))]
        found |= dict.fromkeys(new)
        left += new
    return sorted(found)


def _is_copy(node: fx.Node, row: Op | None) -> bool:
    if row is None or row.output is not Output.SAME or not quant_of(node).int8 or row.clamp is not None or row.elementwise:
        return False
    return not row.averages(node.kwargs) and not row.adds_values(node.kwargs)


def _is_read(node: fx.Node, held: Mapping[fx.Node, object], table: Table) -> bool:
    """Whether anything but a copy reads the node. (A size that is asked for reads no value.)"""

    def reads(user: fx.Node) -> bool:
        return (user not in held and not _is_copy(user, table.of(user)) and not asks_size(user)) or changes(user, node)

    return any(reads(user) or not _takes_first(user, node) for user in node.users)


def _takes_first(user: fx.Node, node: fx.Node) -> bool:
    """Whether a node is the first argument of another, and no other argument."""
    return bool(user.args) and user.args[0] is node and sum(n is node for n in (*user.args, *user.kwargs.values())) == 1


def _run(node: fx.Node, source: object) -> Any:
    args = (source, *(fx.node.map_arg(a, _size) for a in node.args[1:]))
    kwargs = fx.node.map_arg(dict(node.kwargs), _size)
    if node.op == "call_method":
        return getattr(source, str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _size(node: fx.Node) -> Any:
    """The value of a node that depends on constants and sizes alone, with those of the example; raises where it depends on data."""
    shape, module = value_of(node).shape, node.graph.owning_module
    if node.op == "get_attr" and module is not None:
        return attribute(module, str(node.target))
    if node.op == "placeholder" and shape is None:
        raise LookupError(node.name)
    if shape is not None:
        return torch.empty(shape, dtype=value_of(node).dtype, device="meta")
    args, kwargs = fx.node.map_arg(tuple(node.args), _size), fx.node.map_arg(dict(node.kwargs), _size)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _disjoint(reads: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The smallest sets of channels of which every read is a part of one."""
    from networkx.utils import UnionFind

    together: UnionFind = UnionFind()
    for channels in reads:
        together.union(*channels)
    return sorted(tuple(sorted(block)) for block in together.to_sets())


def _parts(producer: fx.Node, held: Mapping[fx.Node, tuple[int, ...] | None], blocks: list[tuple[int, ...]]) -> tuple[Part, ...]:
    of = {channel: i for i, block in enumerate(blocks) for channel in block}

    def part(node: Any) -> int | None:
        channels = held.get(node)
        found = {of.get(c) for c in channels} if channels else {None}
        return found.pop() if len(found) == 1 else None

    first: dict[int, list[fx.Node]] = {i: [] for i in range(len(blocks))}
    for node in held:
        if (index := part(node)) is not None and part(node.args[0]) is None:
            first[index].append(node)
    return tuple(Part(block, tuple(first[i])) for i, block in enumerate(blocks))
