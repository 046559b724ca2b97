"""Copies that move elements to where they are wanted, at the sizes at which they do not lie there."""

from __future__ import annotations

from qcompiler.backends.native.plan.layer import Bound, Layer, Moved, merged
from qcompiler.backends.native.plan.place import Place
from qcompiler.backends.native.plan.sizes import Sizes


def copied(layer: Layer, sizes: Sizes) -> Bound:
    """What moves the value that a layer reads into the place that it asked for in `copies`, where it asked."""
    target = sizes.copies.get(layer.out)
    if target is None:
        return Bound(moved=[NOTHING])
    given = sizes.place(layer.reads[0])
    order = target.order
    shape, strides = tuple(given.shape[d] for d in order), [tuple(p.strides[d] for d in order) for p in (given, target)]
    axes = _longest_last(merged(shape, strides), given.size)
    if len(axes) > 6:
        raise ValueError("a copy in more than six dimensions")
    axes = [(1, (0, 0))] * (6 - len(axes)) + axes
    length, sources, targets = tuple(n for n, _ in axes), tuple(s for _, (s, _) in axes), tuple(t for _, (_, t) in axes)
    return Bound(moved=[Moved(given, target, length, sources, targets, given.size)])


def _longest_last(axes: list[tuple[int, tuple[int, ...]]], size: int) -> list[tuple[int, tuple[int, ...]]]:
    """The axes with the longest of those last along which elements lie side by side in the one or the other: that is the inner loop."""
    beside = [i for i, (_, strides) in enumerate(axes) if size in strides]
    inner = max(beside, key=lambda i: axes[i][0], default=len(axes) - 1)
    return [axis for i, axis in enumerate(axes) if i != inner] + axes[inner : inner + 1]


NOTHING = Moved(Place((), (), 0, 0), Place((), (), 0, 0), (0,) * 6, (0,) * 6, (0,) * 6, 1)
