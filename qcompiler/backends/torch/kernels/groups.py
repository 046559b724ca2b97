"""Grouped convolutions that torch packs badly, packed as fewer groups with zero weights between the merged ones.

fbgemm's kernel for 3x3 windows with as many channels out as in per group, 2 or 4, works on vectors of 16 channels. Where the
groups do not fill them it reads and writes outside its buffers: wrong values, or a crash. Found by running 12 counts of
groups under glibc's malloc checks; whole vectors, a single one in part, and other windows pass.

A depthwise convolution that fbgemm has no kernel of its own for crawls there: 116 channels at 14 x 14 take 1.8 ms, as 29 groups of 4
on onednn 0.06 ms; 144 channels at 56 x 56 without padding 306 ms, merged 0.4. There groups of about 16 channels are the fastest. Of
128 channels, 5 x 5, dilation 2, 28 x 28, groups of 2, 4, 8, 16, 32 take 1277, 662, 348, 207, 205 us with AMX and 1073, 258, 201, 217,
338 without (float: 346 and 295); of 180 channels, 3 x 3, groups of 4 and 12 540 and 247, and 205 and 294 (float: 443 and 421).
Groups of up to 8 are slow with AMX, of 12 a little without. Where fbgemm packs all there is, groups of 32 channels take 5 to 100 times
less than single ones.

oneDNN without vectors of 512 bits has no kernel but its reference, which takes each product alone, for groups whose channels in or out
are no multiple of 4, and for depthwise ones in three dimensions (ONEDNN_VERBOSE says so: `ref:any`). On an AMD EPYC (Zen 3) 32 channels,
3 x 3 x 3, 8 x 16 x 16 take 19 ms there, as groups of 4, 8, 16, 32 channels 393, 251, 520, 863 us (float: 677); 8 groups of 30, 1 x 1,
28 x 28 take 40 ms, as groups of 60 and 120 1218 and 659 us (float: 701). The order is that of the products with each group's channels
rounded up to 8, twice as many where they are no multiple of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

VECTOR = 16  # channels; the 256-bit form of the kernel takes them 4 a 32-bit lane
RIGHT = (4, 8, 12, 16, 24, 32)  # widths right in about 350 random cases each; 20, 28 and 29 are not in some, with AMX
WIDE = 32  # channels: wider groups gain nothing where the image is small
LANE = 8  # 32-bit sums of a vector of 256 bits
ONEDNN_GROUPS = 100  # the x86 engine packs convolutions with more groups with fbgemm


def overruns(shape: tuple[int, ...], groups: int) -> bool:
    """Whether fbgemm's grouped kernel leaves its buffers; `shape` is the weight's (O, I/g, *kernel)."""
    inputs, outputs = shape[1], shape[0] // groups
    if inputs != outputs or inputs not in (2, 4) or len(shape) < 4 or shape[-2:] != (3, 3):
        return False
    return groups * inputs > VECTOR and groups * inputs % VECTOR != 0


def spoiled(shape: tuple[int, ...], groups: int, size: int) -> bool:
    """Whether onednn would compute `size` groups merged wrongly with AMX: up to 32 channels in and more out (found at -12 dB)."""
    return shape[1] * size <= WIDE < shape[0] // groups * size


def _slowness(channels: int) -> float:
    """Orders the widths of merged depthwise groups: the nearest to 16 first, and few widths behind their neighbours."""
    distance = math.log2(channels / VECTOR)
    return max(-distance, 1.2 * distance) + (0.3 if channels == 12 or channels <= 8 else 0.0)


def merge(
    shape: tuple[int, ...],
    groups: int,
    fbgemm: Callable[[int], bool],
    crawls: bool,
    mixed_up: Callable[[tuple[int, ...], int], bool] = lambda shape, groups: False,
) -> int:
    """How many groups to pack as one; 1 leaves the convolution as it is.

    `fbgemm(groups)`: whether so many groups are packed by fbgemm. `crawls`: whether it would crawl through this convolution.
    `mixed_up(shape, groups)`: whether the engine's other library gets a weight of this shape wrong.
    """

    def fails(size: int) -> bool:
        wide = (shape[0], shape[1] * size, *shape[2:])
        return (fbgemm(groups // size) and overruns(wide, groups // size)) or mixed_up(wide, groups // size)

    def crawls_on(size: int) -> bool:
        return crawls and fbgemm(groups // size)

    if not fails(1) and not crawls_on(1):
        return 1
    sizes = [m for m in range(2, groups + 1) if groups % m == 0 and not fails(m)]
    elsewhere = [m for m in sizes if not crawls_on(m)]
    if not elsewhere:  # fbgemm has them all: it crawls least through wide groups
        return max((m for m in sizes if m <= WIDE), default=min(sizes, default=1))
    if crawls:
        return min([m for m in elsewhere if m in RIGHT and not spoiled(shape, groups, m)] or elsewhere, key=_slowness)
    whole = [m for m in elsewhere if shape[1] * m % 4 == 0 and shape[1] * m <= 16]  # 4 bytes fill a lane: three times as fast
    return min(whole or elsewhere)


def by_reference(shape: tuple[int, ...], groups: int) -> bool:
    """Whether oneDNN without vectors of 512 bits runs its reference kernel; `shape` is the weight's (O, I/g, *kernel)."""
    inputs, outputs = shape[1], shape[0] // groups
    if groups == 1 or (inputs == outputs == 1 and len(shape) < 5):
        return False
    return bool(inputs % 4 or outputs % 4)


def merge_for_onednn(shape: tuple[int, ...], groups: int, mixed_up: Callable[[tuple[int, ...], int], bool]) -> int:
    """How many groups to pack as one for oneDNN without vectors of 512 bits; 1 leaves the convolution as it is."""

    def fails(size: int) -> bool:
        wide = (shape[0], shape[1] * size, *shape[2:])
        return by_reference(wide, groups // size) or mixed_up(wide, groups // size)

    def work(size: int) -> int:
        channels = (shape[1] * size, shape[0] // groups * size)
        products = math.prod(-(-count // LANE) * LANE for count in channels) * (groups // size)
        return 2 * products if any(count % LANE for count in channels) else products

    sizes = [m for m in range(1, groups + 1) if groups % m == 0 and not fails(m)]  # all groups as one never fail
    return 1 if 1 in sizes else min(sizes, key=work)
