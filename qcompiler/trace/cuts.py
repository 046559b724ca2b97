"""The numbers in calls that sizes are compared with."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

_CUTS = frozenset(("narrow", "split", "split_with_sizes", "tensor_split", "min", "max"))


def cuts(node: fx.Node) -> Iterator[int]:
    """The numbers in a call that a size is compared with: where slices begin and end, pieces, bounds of sizes."""
    name = node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", ""))
    for value in (*node.args, *node.kwargs.values()):
        yield from (number for number in _numbers(value, name in _CUTS) if number)


def _numbers(value: object, every: bool) -> Iterator[int]:
    """The ends of slices, and `every` other number besides, without their signs."""
    if isinstance(value, slice):
        yield from (abs(end) for end in (value.start, value.stop) if type(end) is int)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _numbers(part, every)
    elif type(value) is int and every:
        yield abs(value)
