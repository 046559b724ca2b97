"""For which shapes oneDNN's int8 convolutions are wrong or crash, as data, and how each class is kept away from the kernel.

Found by `python -m tests.fuzz_kernels` and 24,000 random geometries of bare kernels, with AMX and limited to AVX512_CORE_VNNI (oneDNN 3.12,
torch 2.13): none outside these classes was wrong, and with ONEDNN_MAX_CPU_ISA=AVX2 none at all. fbgemm and qnnpack have none of them. What
is packed by oneDNN is decided where a program runs, so the classes hold for every instruction set that it is compiled for.

| class                                                              | what happens        | instead                                     |
|--------------------------------------------------------------------|---------------------|---------------------------------------------|
| padding as wide as the window or wider                             | SIGSEGV, 255 quanta | zeros are put around the input before it    |
| a dimension shorter than the dilation (a window between two taps)  | SIGSEGV, 255 quanta | at_least: the dilation                      |
| one output column, stride above 1, window wider than 1 (AMX)       | 255 quanta          | at_least: two output columns                |
| depth 1 under a window deeper than 1, few channels a group         | 255 quanta          | at_least: depth 2                           |
| groups of few channels and more than 16 results                    | 255 quanta          | groups are merged                           |

Few channels are fewer than 32 a group. Depth 1 is a fault of weights that the kernel packs with the window's columns beside the channels:
a window wider than 1 without dilation. `at_least` puts zeros behind the input and cuts the result, where a call has such a size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FEW = 32  # channels: half of a vector of 64 bytes
BLOCK = 16  # results: one vector of 32-bit sums


def overpads(kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> bool:
    """Whether a whole window lies in the padding at any size."""
    return any(p >= d * (k - 1) + 1 for k, p, d in zip(kernel, padding, dilation))


def joins_columns(shape: Sequence[int], dilation: Sequence[int]) -> bool:
    """Whether oneDNN may pack the window's columns beside the channels; `shape` is the weight's (O, I/g, *kernel)."""
    return shape[1] < FEW and shape[-1] > 1 and dilation[-1] == 1


def misplaces_groups(shape: Sequence[int], groups: int) -> bool:
    """Whether a weight has several groups of few channels and several blocks of results, which kernels mix up.

    Which of these are wrong depends on sizes, dilation and the number of threads; a window of one element never was.
    """
    return groups > 1 and shape[0] // groups > BLOCK and shape[1] < FEW and math.prod(shape[2:]) > 1


@dataclass(frozen=True)
class Sizes:
    """Per spatial dimension: below `smallest` there is no result, below `least` the kernel is not right. With stride s, an input of n
    has (n - smallest) // s + 1 results.
    """

    smallest: list[int]
    least: list[int]

    def trailing(self, stride: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """`smallest`, `least` and the strides, without the leading dimensions of which any size will do: each costs a look a call."""
        first = next((i for i, n in enumerate(self.least) if n > 1), len(self.least) - 1)
        return self.smallest[first:], self.least[first:], list(stride[first:])

    @property
    def checked(self) -> bool:
        """Whether a call may be too small: for a result, or for the kernel."""
        return any(n > 1 for n in self.least)

    @property
    def grown(self) -> bool:
        """Whether a call that has a result may be too small for the kernel."""
        return any(most > max(few, 1) for few, most in zip(self.smallest, self.least))


def fitting(kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Sizes:
    """The sizes into which a window fits, all of which are right."""
    smallest = [d * (k - 1) + 1 - 2 * p for k, p, d in zip(kernel, padding, dilation)]
    return Sizes(smallest, [max(few, 1) for few in smallest])


def sizes(shape: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Sizes:
    """From which input sizes on oneDNN's kernel is right, for a weight (O, I/g, *kernel) and padding that `overpads` lets through."""
    kernel = shape[2:]
    smallest = fitting(kernel, padding, dilation).smallest
    least = [max(few, d if k > 1 and p > 0 else 1) for few, k, p, d in zip(smallest, kernel, padding, dilation)]
    if stride[-1] > 1 and kernel[-1] > 1:
        least[-1] = max(least[-1], smallest[-1] + stride[-1])
    if len(kernel) == 3 and kernel[0] > 1 and joins_columns(shape, dilation):
        least[0] = max(least[0], 2)
    return Sizes(smallest, least)
