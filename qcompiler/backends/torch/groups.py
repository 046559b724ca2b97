"""Grouped convolutions that torch packs badly, packed as fewer groups with zero weights between the merged ones.

fbgemm's kernel for 3x3 windows with as many channels out as in per group, 2 or 4, works on vectors of 16 channels. Where the
groups do not fill them it reads and writes outside its buffers: wrong values, or a crash. Found by running 12 counts of
groups under glibc's malloc checks; whole vectors, a single one in part, and other windows pass.

A depthwise convolution with more than 100 groups that fbgemm's depthwise kernel does not take crawls there: 116 channels (not a
multiple of 8) at 14 x 14 take 1.8 ms, as 29 groups of 4 on onednn 0.06 ms; in one dimension, 1024 channels with 31 taps at 402 steps
471 ms, as 64 groups of 16 on onednn 7.2 (in float 42).
"""

from __future__ import annotations

from collections.abc import Callable

VECTOR = 16  # channels; the 256-bit form of the kernel takes them 4 a 32-bit lane
ONEDNN_GROUPS = 100  # the x86 engine packs convolutions with more groups with fbgemm


def overruns(shape: tuple[int, ...], groups: int) -> bool:
    """Whether fbgemm's grouped kernel leaves its buffers; `shape` is the weight's (O, I/g, *kernel)."""
    inputs, outputs = shape[1], shape[0] // groups
    if inputs != outputs or inputs not in (2, 4) or len(shape) < 4 or shape[-2:] != (3, 3):
        return False
    return groups * inputs > VECTOR and groups * inputs % VECTOR != 0


def merge(shape: tuple[int, ...], groups: int, fbgemm: Callable[[int], bool], crawls: bool) -> int:
    """How many groups to pack as one; 1 leaves the convolution as it is.

    `fbgemm(groups)`: whether so many groups are packed by fbgemm. `crawls`: whether it has no fast kernel for this convolution, and
    fewer groups get another library.
    """

    def bad(count: int) -> bool:
        wide = (shape[0], shape[1] * (groups // count), *shape[2:])
        return fbgemm(count) and (overruns(wide, count) or crawls)

    if not bad(groups):
        return 1
    sizes = [m for m in range(2, groups + 1) if groups % m == 0 and not bad(groups // m)]
    whole = [m for m in sizes if shape[1] * m % 4 == 0 and shape[1] * m <= 16]  # 4 bytes fill a lane: three times as fast
    return min(whole or sizes)
