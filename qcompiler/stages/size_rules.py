"""How the sizes of one op's result follow from those of its arguments: by its attributes where they decide, else by what agrees.

A rule or a guess counts only if it gives the sizes that were found at every one of the runs. What no rule explains stays unknown.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from torch import fx

from qcompiler.ops.table import Table
from qcompiler.stages.size_expressions import Expression, Size, add, floor, is_size, least, modulo, times


@dataclass(frozen=True)
class Known:
    """A size and its value at every run."""

    size: Size
    values: tuple[int, ...]


@dataclass(frozen=True)
class Local:
    """One op: the sizes of its tensors (`shapes`, in order), the whole numbers among its arguments, its row's name,
    attributes and spatial dimensions."""

    node: fx.Node
    kind: str
    shapes: tuple[tuple[Known, ...], ...]
    numbers: tuple[Known, ...]
    attributes: Mapping[str, Any]
    sizes: Mapping[fx.Node, Any] = field(default_factory=dict)
    dims: int | None = None

    def size(self, value: object) -> Size | None:
        """A setting that is a whole number, or a node that computes one."""
        found = self.sizes.get(value) if isinstance(value, fx.Node) else value
        return found if is_size(found) else None

    @property
    def first(self) -> tuple[Known, ...]:
        return self.shapes[0] if self.shapes else ()


def pair(value: Any, index: int) -> int:
    """Of a setting that is one number for all dimensions, or one for each."""
    return int(value if isinstance(value, int) else value[index if len(value) > 1 else 0])


def window(local: Local, axis: int, rank: int) -> Size | None:
    """Convolutions and pools: floor((x + padding - extent) / stride) + 1."""
    dims = local.dims if local.dims is not None else rank - 2
    index = axis - (rank - dims)
    if index < 0 or len(local.first) != rank:
        return None
    get = local.attributes.get
    kernel = pair(get("kernel_size"), index) if get("kernel_size") is not None else local.shapes[1][2 + index].values[0]
    stride = pair(get("stride", 1) if get("stride") is not None else get("kernel_size"), index)
    extent = pair(get("dilation", 1), index) * (kernel - 1) + 1
    padding: Any = get("padding", 0)
    sides = {"same": extent - 1, "valid": 0}[padding] if isinstance(padding, str) else 2 * pair(padding, index)
    x = local.first[axis].size
    if not get("ceil_mode"):
        return add(floor(add(x, sides - extent), stride), 1)
    if stride + sides // 2 <= extent:
        return add(floor(add(x, sides - extent + stride - 1), stride), 1)
    # the last window must begin within the input or the padding before it
    return least(add(floor(add(x, sides - extent + stride - 1), stride), 1), add(floor(add(x, sides // 2 - 1), stride), 1))


def resized(local: Local, axis: int, rank: int) -> Size | None:
    """A resize by a factor: floor(x * factor), for factors that are a quotient of small numbers."""
    factor: Any = local.attributes.get("scale_factor")
    if factor is None or axis < 2:
        return None
    factor = factor[axis - 2] if isinstance(factor, (tuple, list)) else factor
    if not isinstance(factor, (int, float)):  # computed at run time
        return None
    numerator, denominator = float(factor).as_integer_ratio()
    return floor(times(numerator, local.first[axis].size), denominator)


def sliced(local: Local, axis: int, rank: int) -> Size | None:
    """A slice in the place of a dimension, where every dimension before it stays: ceil((stop - start) / step)."""
    index: Any = local.attributes.get("index")
    entries = list(index) if isinstance(index, (tuple, list)) else [index]
    if any(not isinstance(e, slice) and e is not Ellipsis for e in entries) or len(local.first) != rank:
        return None
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        entries[at : at + 1] = [slice(None)] * (rank - len(entries) + 1)
    entry = entries[axis] if axis < len(entries) else slice(None)
    return _length(local, local.first[axis].size, entry)


def _length(local: Local, x: Size, entry: slice) -> Size | None:
    start, stop, step = (None if end is None else local.size(end) for end in (entry.start, entry.stop, entry.step))
    if not isinstance(step, int | None) or any(s is None and e is not None for s, e in ((start, entry.start), (stop, entry.stop))):
        return None
    first: Size = 0 if start is None else add(x, start) if isinstance(start, int) and start < 0 else start
    last: Size = x if stop is None else add(x, stop) if isinstance(stop, int) and stop < 0 else least(x, stop)
    return floor(add(last, times(-1, first), (step or 1) - 1), step or 1)


def padded(local: Local, axis: int, rank: int) -> Size | None:
    """x and what is added on both sides; the pairs begin with the last dimension. Numbers below 0 cut."""
    pad: Any = local.attributes.get("pad")
    first = 2 * (rank - 1 - axis)
    if not isinstance(pad, (tuple, list)) or len(local.first) != rank:
        return None
    sides = [local.size(side) for side in pad[first : first + 2]]
    return None if None in sides else add(local.first[axis].size, *(side for side in sides if side is not None))


def chunked(local: Local, axis: int, rank: int) -> tuple[Size, ...] | None:
    """All chunks but the last are ceil(x / chunks); the last is what they leave."""
    count, dim = local.attributes.get("chunks"), local.attributes.get("dim", 0)
    if not isinstance(count, int) or not isinstance(dim, int) or dim % rank != axis:
        return None
    full = floor(add(local.first[axis].size, count - 1), count)
    return full, add(local.first[axis].size, times(1 - count, full))


def unfolded(local: Local, axis: int, rank: int) -> Size | None:
    """Tensor.unfold: windows of a size along one dimension, a step apart."""
    dim, size, step = (local.attributes.get(name) for name in ("dimension", "size", "step"))
    if not isinstance(dim, int) or not isinstance(size, int) or not isinstance(step, int) or dim % (rank - 1) != axis:
        return None
    return add(floor(add(local.first[axis].size, -size), step), 1)


def columns(local: Local, axis: int, rank: int) -> Size | None:
    """F.unfold: one column for each window of an image."""
    if rank != 3 or axis != 2 or len(local.first) != 4:
        return None
    one = replace(local, numbers=(), dims=2)
    sides = [window(one, axis, 4) for axis in (2, 3)]
    return times(*(side for side in sides if side is not None))


RULES: dict[str, Callable[[Local, int, int], Size | tuple[Size, ...] | None]] = {
    **{f"conv{d}d": window for d in (1, 2, 3)},
    "conv2d_add": window,
    **{f"{kind}_pool{d}d": window for d in (1, 2, 3) for kind in ("max", "avg")},
    "interpolate": resized,
    "getitem": sliced,
    "pad": padded,
    "chunk": chunked,
    "unfold_dimension": unfolded,
    "unfold": columns,
}
NUMBERS: dict[object, Callable[[Size, Size], Size]] = {
    operator.add: add,
    operator.sub: lambda a, b: add(a, times(-1, b)),
    operator.mul: times,
    operator.floordiv: floor,
    operator.mod: modulo,
    min: least,
}


def dimension(local: Local, axis: int, rank: int, values: tuple[int, ...], at: Callable[[Size], tuple[int, ...]]) -> Size | None:
    """The size of one dimension of a result that had these values; None where nothing explains them. `at`: a size at every run."""
    rule = RULES.get(local.kind)
    ruled = rule(local, axis, rank) if rule is not None else None
    for size in ruled if isinstance(ruled, tuple) else () if ruled is None else (ruled,):
        if at(size) == values:
            return size
    own = local.first[axis] if len(local.first) == rank else None
    if own is not None and isinstance(own.size, Expression) and own.values == values:
        return own.size  # before a constant: no run may have been far enough to tell them apart
    if len(set(values)) == 1:
        return values[0]
    return next((size for size in _agreeing(local, axis, rank, values) if at(size) == values), None)


def _agreeing(local: Local, axis: int, rank: int, values: tuple[int, ...]) -> Iterator[Size]:
    """What may explain a dimension, the plainest first."""
    shapes = [shape for shape in local.shapes if any(isinstance(known.size, Expression) for known in shape)]
    yield from (known.size for shape in shapes for known in shape if known.values == values)
    yield from (known.size for known in local.numbers if known.values == values)
    same = [shape for shape in local.shapes if len(shape) == rank]
    if len(same) > 1:
        yield add(*(shape[axis].size for shape in same))
    for shape in shapes:
        yield from (linear for known in shape if (linear := _linear(known, values)) is not None)
    for shape in shapes:
        yield from _products(shape, values)
    every = [known for shape in shapes[:1] for known in shape]
    yield from (times(number.size, known.size) for number in local.numbers for known in every)
    yield from _products(local.numbers, values)


def _linear(known: Known, values: tuple[int, ...]) -> Size | None:
    """a * x + b, or an exact quotient x / c."""
    low, high = min(known.values), max(known.values)
    if low == high:
        return None
    one, two = values[known.values.index(low)], values[known.values.index(high)]
    factor, left = divmod(two - one, high - low)
    if left == 0:
        return add(times(factor, known.size), one - factor * low)
    quotient, left = divmod(high, two) if two else (0, 1)
    return floor(known.size, quotient) if left == 0 and all(v * quotient == x for v, x in zip(values, known.values, strict=True)) else None


def _products(shape: Sequence[Known], values: tuple[int, ...]) -> Iterator[Size]:
    """Neighbouring dimensions as one, maybe times a number or divided by one."""
    for first in range(len(shape)):
        for known in accumulate(shape[first:], _product):
            if not isinstance(known.size, Expression) or 0 in values or 0 in known.values:
                continue
            if all(v % x == 0 and v // x == values[0] // known.values[0] for v, x in zip(values, known.values, strict=True)):
                yield times(values[0] // known.values[0], known.size)
            elif all(x % v == 0 and x // v == known.values[0] // values[0] for v, x in zip(values, known.values, strict=True)):
                yield floor(known.size, known.values[0] // values[0])


def _product(a: Known, b: Known) -> Known:
    return Known(times(a.size, b.size), tuple(x * y for x, y in zip(a.values, b.values, strict=True)))


def _asked(local: Local, index: int | None) -> Size | None:
    """The size that a node asks a tensor for: one, or all of them, of which this is the one at `index`."""
    args = local.node.args
    if local.node.target is operator.getitem and isinstance(args[0], fx.Node) and isinstance(args[1], int):
        held = local.sizes.get(args[0])
        return local.size(held[args[1]]) if isinstance(held, list) and -len(held) <= args[1] < len(held) else None
    given = args[1] if local.node.target == "size" and len(args) > 1 else index
    asks = local.node.target in ("size", getattr)
    return local.first[given].size if asks and isinstance(given, int) and -len(local.first) <= given < len(local.first) else None


def number(local: Local, values: tuple[int, ...], at: Callable[[Size], tuple[int, ...]], index: int | None = None) -> Size | None:
    """A whole number that a node computes from sizes. `index`: its place, where the node gives several."""
    asked = _asked(local, index)
    if asked is not None and at(asked) == values:
        return asked
    made = NUMBERS.get(local.node.target)
    if made is not None and len(local.numbers) == 2 and at(size := made(local.numbers[0].size, local.numbers[1].size)) == values:
        return size
    if len(set(values)) == 1:
        return values[0]
    return next((size for size in _agreeing(local, 0, -1, values) if at(size) == values), None)


def kind_of(node: fx.Node, table: Table) -> str:
    row = table.of(node)
    return row.settled.name if row is not None else ""
