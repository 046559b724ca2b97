"""For which shapes fbgemm's int8 convolutions are wrong or crash, as data; onednn_faults.py has those of oneDNN.

Found by `python -m tests.fuzz_kernels` and by sizes of 1 to 4 under glibc's malloc checks (torch 2.13).

| class                                                                  | what happens              | instead                     |
|------------------------------------------------------------------------|---------------------------|-----------------------------|
| depthwise 5x5x5 and 7x7x7, fewer planes or rows of results than padding| writes outside its result | at_least: as many as padding|
| 3x3 windows of 2 or 4 channels a group that fill no vector (groups.py) | wrong values, a crash     | groups are merged           |

The depthwise kernel takes centred padding of half a window and writes the planes and rows that lie next to it one by one, whether there are
so many or not. Columns do no harm, and no size in two dimensions does.
"""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.backends.torch.kernels.onednn_faults import Sizes


def grown(found: Sizes, stride: Sequence[int], padding: Sequence[int]) -> Sizes:
    """The sizes from which its depthwise kernel with this (centred) padding is right as well: n give (n - 1) // stride + 1 results."""
    if len(padding) < 3:
        return found
    least = [max(n, s * (p - 1) + 1) for n, s, p in zip(found.least[:-1], stride, padding)]
    return Sizes(found.smallest, [*least, found.least[-1]])
