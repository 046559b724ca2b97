"""A batch some samples at a time: what lies in the arena then stays in the second cache, and threads need not wait for each other.

That gives the same bits where sample n of every result is made of sample n of the inputs alone. Each kind of layer says whether it is so
(`Layer.by_sample`), and the shapes at both numbers of samples must agree in all but the first dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.steps import is_value, leaves
from qcompiler.errors import QCompilerError

NEAR = 3 << 20  # bytes of an arena that stay near a core
TWICE = 32  # one sample of so many, at most, is computed twice, where the last part would have too few


class ByItself(Protocol):
    """What a layer answers about samples."""

    @property
    def out(self) -> str: ...
    @property
    def reads(self) -> tuple[str, ...]: ...
    def by_sample(self, samples: Samples) -> bool: ...
    def stays(self, samples: Samples) -> bool: ...


@dataclass
class Samples:
    """`names`: the values whose first dimension counts samples. `whole`, `part`: the sizes of a call, and of some of its samples."""

    whole: Sizes
    part: Sizes
    names: set[str] = field(default_factory=set)

    @property
    def counts(self) -> tuple[int, int]:
        return _count(self.whole), _count(self.part)

    def rank(self, name: str) -> int:
        return len(self.part.shape(name))

    def holds(self, names: Sequence[str]) -> bool:
        """Whether all of these count samples."""
        return all(name in self.names for name in names)

    def may_spread(self, names: Sequence[str], out: str) -> bool:
        """Whether the first dimensions of these values meet as samples, or are spread over them, in a result to which each is spread."""
        rank = self.rank(out)
        return all(self.rank(one) == rank if one in self.names else self.rank(one) < rank or self.part.shape(one)[0] == 1 for one in names)

    def add(self, layer: ByItself) -> bool:
        """Whether a layer computes sample by sample, or gives the same at both sizes."""
        whole, part, given = self.whole.shapes[layer.out], self.part.shapes[layer.out], any(name in self.names for name in layer.reads)
        if (given or not layer.reads) and self._agree(whole, part) and layer.by_sample(self):
            self.names.add(layer.out)
            return True
        if not layer.reads:
            return layer.stays(self)
        return not given and whole == part and self._same_numbers(layer)

    def _same_numbers(self, layer: ByItself) -> bool:
        """Whether the numbers among a layer's settings are the same at both sizes."""
        numbers = [leaf[1:] for leaf in leaves(list(vars(layer).values())) if is_value(leaf)]
        return all(self.whole.shapes[name] == self.part.shapes[name] for name in numbers)

    def _agree(self, whole: object, part: object) -> bool:
        if not isinstance(whole, tuple) or not isinstance(part, tuple) or not whole or len(whole) != len(part):
            return False
        if isinstance(whole[0], tuple):
            return all(map(self._agree, whole, part))
        return (whole[0], part[0]) == self.counts and whole[1:] == part[1:] and 0 not in part


def _count(sizes: Sizes) -> int:
    return sizes.shape(sizes.network.inputs[0][0])[0]


def some_samples(sizes: Sizes, arena: int) -> Sizes | None:
    """The sizes of as many samples as are computed at a time, of a call whose arena is so large; None: all of them."""
    given = [sizes.shape(name) for name, _ in sizes.network.inputs]
    counts = {shape[0] if shape else 0 for shape in given}
    if arena <= NEAR or len(counts) != 1 or (count := counts.pop()) < 2:
        return None
    most = max(1, NEAR * count // arena)
    at_once = next(n for n in range(most, 0, -1) if (math.ceil(count / n) * n - count) * TWICE <= count)
    shapes = {name: (at_once, *sizes.shape(name)[1:]) for name, _ in sizes.network.inputs}
    try:
        found = Sizes(sizes.network, dict(shapes), strides=sizes.strides).filled()
    except QCompilerError:  # these sizes alone do not fit
        return None
    samples = Samples(sizes, found, set(shapes))
    if not all(map(samples.add, sizes.network.layers)):
        return None
    handed = [name for name in sizes.network.outputs if isinstance(sizes.shapes.get(name), tuple)]
    return found if samples.holds(handed) else None  # one that is the same at both sizes has no place of its own for each sample
