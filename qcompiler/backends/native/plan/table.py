"""The sizes of a network as the C reads them: structs with offsets in the arena in place of pointers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qcompiler.backends.native.build.library import Copy, SizesStruct, Tensor
from qcompiler.backends.native.plan.arena import arrange
from qcompiler.backends.native.plan.layer import Bound, Layer, Moved, Pixels, image
from qcompiler.backends.native.plan.place import Place
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.errors import InputError

MOST = 2**46  # bytes of an arena: no machine has more
OFFSET_BITS = 48  # of a place as net.h reads it

NOTHING = -1  # QC_NOTHING: the cost of a layer whose result has no element


@dataclass(frozen=True)
class Table:
    """`struct` points into `kept`. `shapes`: of each tensor that is handed out."""

    struct: SizesStruct
    kept: tuple[Any, ...]
    sizes: Sizes
    offsets: tuple[int, ...]


def table_of(sizes: Sizes) -> Table:
    """All size-dependent structs of a network, in the order in which its C counts them."""
    layers = sizes.network.computing
    bound = [_bound(layer, sizes) for layer in layers]
    offsets, arena = arrange(sizes.buffers)
    if arena >= MOST:
        raise InputError(f"the values of these sizes take {arena} bytes", code="input-shape", hint="give smaller inputs")
    pixels = _array(Tensor, [_tensor(p, offsets) for b in bound for p in b.pixels])
    moved = _array(Copy, [_copy(m, offsets) for b in bound for m in b.moved])
    strides = _array(ctypes.c_int64 * 5, [(ctypes.c_int64 * 5)(*s) for b in bound for s in b.strides])
    spread = _array(ctypes.c_int32, _spread(bound))
    lists = [np.ascontiguousarray(at, dtype=np.int64) for b in bound for at in b.maps]
    maps = _array(ctypes.c_void_p, [at.ctypes.data for at in lists])
    cost = _array(ctypes.c_int64, [NOTHING if 0 in sizes.shape(layer.out) else layer.cost(sizes) for layer in layers])
    struct = SizesStruct(pixels, moved, ctypes.cast(strides, ctypes.c_void_p), spread, cost, ctypes.cast(maps, ctypes.c_void_p), arena)
    return Table(struct, (pixels, moved, strides, spread, cost, maps, lists), sizes, tuple(offsets))


def _bound(layer: Layer, sizes: Sizes) -> Bound:
    """Behind what the layer itself reads stands the value whose rim it writes, where it does."""
    bound, whole = layer.bind(sizes), sizes.network.rims.get(layer.out)
    if whole is not None:
        bound.pixels.append(image(sizes.place(whole), len(sizes.network.halos[whole])))
    return bound


def _spread(bound: Sequence[Bound]) -> list[int]:
    return [value for b in bound for value in b.spread]


def _array(kind: Any, values: Sequence[Any]) -> Any:
    return (kind * max(len(values), 1))(*values)


def _tensor(p: Pixels, offsets: Sequence[int]) -> Tensor:
    if max(p.sizes) >= 2**31:
        raise InputError(f"a value of {' x '.join(map(str, p.sizes))} elements is too large", code="input-shape")
    return Tensor(_address(p.place, offsets), *p.sizes, *p.strides)


def _address(place: Place, offsets: Sequence[int]) -> int:
    """A place as net.h reads it: an offset in the arena, or in what is not the arena's."""
    return offsets[place.buffer] + place.offset if place.buffer >= 0 else (-place.buffer << OFFSET_BITS) + place.offset


def _copy(m: Moved, offsets: Sequence[int]) -> Copy:
    if not m.length[-1]:
        return Copy()
    start, end = (_address(p, offsets) for p in (m.source, m.target))
    six = ctypes.c_int64 * 6
    return Copy(start, end, six(*m.length), six(*m.from_strides), six(*m.to_strides), m.size)
