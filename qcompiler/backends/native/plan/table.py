"""The sizes of a network as the C reads them: structs with offsets in the arena in place of pointers."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.native.build.library import Copy, SizesStruct, Tensor
from qcompiler.backends.native.plan.arena import arrange
from qcompiler.backends.native.plan.layer import Bound, Layer, Moved, Pixels, image
from qcompiler.backends.native.plan.place import SETTLED, Place
from qcompiler.backends.native.plan.samples import some_samples
from qcompiler.backends.native.plan.sizes import SLACK, Sizes, refusing
from qcompiler.errors import InputError

MOST = 2**46  # bytes of an arena: no machine has more
OFFSET_BITS = 48  # of a place as net.h reads it
TENSORS = 16  # QC_TENSORS: at most, of a network that is run in parts
LISTS = 0x7FFF  # the bits above it of what stands beside the sizes: 16 bits of the list's number, 32 of the offset

NOTHING = -1  # QC_NOTHING: the cost of a layer whose result has no element


@dataclass(frozen=True)
class Table:
    """`struct` points into `kept`. `sizes`: of what it computes at a time; `whole`: of the call. `steps`: for each tensor of the caller's
    how far the parts of the call, and the last one, are behind the first; empty where the call is one part.
    """

    struct: SizesStruct
    kept: tuple[Any, ...]
    sizes: Sizes
    whole: Sizes
    offsets: tuple[int, ...]
    steps: tuple[list[int], list[int]] = ([], [])


def table_in_parts(sizes: Sizes) -> Table:
    """The table of a call: of some of its samples, where it is computed some at a time."""
    table = table_of(sizes)
    few = some_samples(sizes, table.struct.arena)
    if few is None or len(sizes.network.io) > TENSORS:
        return table
    table, names = table_of(few), sizes.network.io
    count, at_once = (one.shape(sizes.network.inputs[0][0])[0] for one in (sizes, few))
    bytes_of = [_bytes_of_sample(name, few) for name in names]
    table.struct.parts, table.struct.tensors = -(-count // at_once), len(names)
    steps = [at_once * n for n in bytes_of], [(count - at_once) * n for n in bytes_of]
    table.struct.step, table.struct.last = arrays = tuple(_array(ctypes.c_int64, step) for step in steps)
    return replace(table, kept=(*table.kept, *arrays), whole=sizes, steps=steps)


def _bytes_of_sample(name: str, sizes: Sizes) -> int:
    """How far the caller's samples lie apart."""
    if name in sizes.strides:
        return 4 * sizes.strides[name][0]
    return int(math.prod(sizes.shape(name)[1:]) * sizes.network.dtypes[name].itemsize)


def table_of(sizes: Sizes) -> Table:
    """All size-dependent structs of a network, in the order in which its C counts them."""
    layers = sizes.network.computing
    bound = [_bound(layer, sizes) for layer in layers]
    offsets, arena = arrange(sizes.buffers)
    if arena >= MOST:
        raise InputError(f"the values of these sizes take {arena} bytes", code="input-shape", hint="give smaller inputs")
    lists = [np.ascontiguousarray(at, dtype=np.int64) for b in bound for at in b.maps]
    where = Where(tuple(offsets), len(lists))
    lists += [_as_list(values.numpy()) for values in sizes.settled.values()]
    pixels = _array(Tensor, [_tensor(p, where) for b in bound for p in b.pixels])
    moved = _array(Copy, [_copy(m, where) for b in bound for m in b.moved])
    strides = _array(ctypes.c_int64 * 5, [(ctypes.c_int64 * 5)(*s) for b in bound for s in b.strides])
    spread = _array(ctypes.c_int32, _spread(bound))
    maps = _array(ctypes.c_void_p, [at.ctypes.data for at in lists])
    cost = _array(ctypes.c_int64, [NOTHING if 0 in sizes.shape(layer.out) else layer.cost(sizes) for layer in layers])
    struct = SizesStruct(pixels, moved, ctypes.cast(strides, ctypes.c_void_p), spread, cost, ctypes.cast(maps, ctypes.c_void_p), arena)
    return Table(struct, (pixels, moved, strides, spread, cost, maps, lists), sizes, sizes, tuple(offsets))


def _bound(layer: Layer, sizes: Sizes) -> Bound:
    """Behind what the layer itself reads stands the value whose rim it writes, where it does."""
    with refusing(layer):
        bound = layer.bind(sizes)
    whole = sizes.network.rims.get(layer.out)
    if whole is not None:
        bound.pixels.append(image(sizes.place(whole), len(sizes.network.halos[whole])))
    return bound


def _spread(bound: Sequence[Bound]) -> list[int]:
    return [value for b in bound for value in b.spread]


def _array(kind: Any, values: Sequence[Any]) -> Any:
    return (kind * max(len(values), 1))(*values)


@dataclass(frozen=True)
class Where:
    """Of the arena's buffers the offsets, and how many lists stand before what was computed from the sizes."""

    offsets: tuple[int, ...]
    lists: int

    def address(self, place: Place) -> int:
        """A place as net.h reads it: an offset in the arena, or in what is not the arena's."""
        if place.buffer >= 0:
            return self.offsets[place.buffer] + place.offset
        if place.buffer > SETTLED:
            return (-place.buffer << OFFSET_BITS) + place.offset
        index = self.lists + SETTLED - place.buffer
        if index >= 1 << 16 or place.offset >= 1 << 32:
            raise InputError("what follows from these sizes is too large", code="input-shape", hint="give smaller inputs")
        return (LISTS << OFFSET_BITS) + (index << 32) + place.offset


def _as_list(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """The bytes of floats as 64-bit numbers, with as many behind them as kernels may read."""
    raw = np.ascontiguousarray(values).tobytes()
    return np.frombuffer(raw + bytes(-len(raw) % 8 + SLACK), np.int64).copy()


def _tensor(p: Pixels, where: Where) -> Tensor:
    if max(p.sizes) >= 2**31:
        raise InputError(f"a value of {' x '.join(map(str, p.sizes))} elements is too large", code="input-shape")
    return Tensor(where.address(p.place), *p.sizes, *p.strides)


def _copy(m: Moved, where: Where) -> Copy:
    if not m.length[-1]:
        return Copy()
    start, end = (where.address(p) for p in (m.source, m.target))
    six = ctypes.c_int64 * 6
    return Copy(start, end, six(*m.length), six(*m.from_strides), six(*m.to_strides), m.size)
