"""Assignments to slices of a copy become a cat of what stays and what is assigned, which has int8 forms and kernels.

    y = clone(x); setitem(y, [:, 1:], value); z = op(y)   ->   y = clone(x); v = cat([y[:, :1], value], 1); z = op(v)

Several slices at once are a cat along each axis. What is not as simple stays an assignment: steps, indices of tensors, bounds that depend
on sizes or count from both ends (where the slice may be empty), values that are repeated or of another dtype.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch.fx.node import Target

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.types import SOURCE, VALUE, Stage, Value, source_of, value_of
from qcompiler.ops.arguments import changes
from qcompiler.ops.functional import expand, getitem

Bounds = tuple[int, int | None, int | None]  # an axis, where the slice begins and ends


@dataclass(frozen=True)
class JoinAssignments:
    name: str = "join_assignments"
    stage: Stage = Stage.TRACED
    required: bool = False
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        changed = False
        for node in list(gm.graph.nodes):
            writes = sorted(user for user in node.users if changes(user, node))  # nodes compare by their place in the graph
            if node.target is torch.clone and writes and all(map(_is_simple, writes)) and _is_read_behind(node, writes):
                if context.allows("join_assignments", node):
                    _join(gm, node, writes)
                    context.journal.matches += 1
                    changed = True
                else:
                    context.remark(self.name, "held-back", "could be a cat of its slices, but that was held back", node)
        return changed


def _is_simple(write: fx.Node) -> bool:
    if write.target is not operator.setitem or write.users:
        return False
    node, _, value = write.args
    assert isinstance(node, fx.Node)
    base, bounds = value_of(node), bounds_of(write)
    if not isinstance(value, fx.Node) or base.shape is None or bounds is None:
        return False
    wanted = list(base.shape)
    for axis, begin, end in bounds:
        wanted[axis] = len(range(*slice(begin, end).indices(wanted[axis])))
    given = value_of(value)
    return given.dtype == base.dtype and given.shape == tuple(wanted) and 0 not in wanted


def bounds_of(write: fx.Node) -> tuple[Bounds, ...] | None:
    """The axes that an assignment cuts, none where it is to all of them; None where its index is not of plain slices."""
    index: Any = write.args[1]
    base: Any = write.args[0]
    shape, entries = value_of(base).shape, list(index) if isinstance(index, (tuple, list)) else [index]
    if shape is None or entries.count(Ellipsis) > 1 or not all(e is Ellipsis or _is_plain(e) for e in entries):
        return None
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        entries[at : at + 1] = [slice(None)] * (len(shape) - len(entries) + 1)
    found = ((axis, entry.start or 0, entry.stop) for axis, entry in enumerate(entries))
    return tuple(bounds for bounds in found if bounds[1:] != (0, None))


def _is_plain(entry: object) -> bool:
    """Whether what stands before, in and behind a slice is all of the axis, once, at any size."""
    if not isinstance(entry, slice) or entry.step not in (None, 1):
        return False
    begin, end = entry.start or 0, entry.stop
    if type(begin) is not int or (end is not None and type(end) is not int):
        return False
    return end is None or ((begin < 0) == (end < 0) and begin < end)


def _is_read_behind(node: fx.Node, writes: Sequence[fx.Node]) -> bool:
    """Whether nothing reads the copy before the last assignment: that could be a view, in which assignments show."""
    readers = [user for user in node.users if user not in writes]
    return bool(readers) and min(readers) > writes[-1]


def _join(gm: fx.GraphModule, node: fx.Node, writes: Sequence[fx.Node]) -> None:
    last = writes[-1]
    readers = [user for user in node.users if user > last]
    joined = node
    for write in writes:
        with gm.graph.inserting_before(write):
            joined = _Join(gm, write).of(joined, bounds_of(write) or ())
    for user in readers:
        user.replace_input_with(node, joined)
    for write in writes:
        gm.graph.erase_node(write)


@dataclass(frozen=True)
class _Join:
    gm: fx.GraphModule
    write: fx.Node

    def of(self, base: fx.Node, bounds: Sequence[Bounds]) -> fx.Node:
        """The base with the value in the place that the bounds leave."""
        if not bounds:
            return self._spread()
        (axis, begin, end), *rest = bounds
        middle = self.of(self._cut(base, axis, begin, end) if rest else base, rest)
        before = [self._cut(base, axis, None, begin)] if begin else []
        behind = [self._cut(base, axis, end, None)] if end is not None else []
        parts = [*before, middle, *behind]
        return parts[0] if len(parts) == 1 else self._noted(torch.cat, (parts,), {"dim": axis}, value_of(base).shape)

    def _spread(self) -> fx.Node:
        """The value with the sizes of its place: an assignment repeats it along axes where it has one element, and refuses other sizes,
        which a cat would take."""
        base, index, value = self.write.args
        assert isinstance(base, fx.Node) and isinstance(value, fx.Node)
        shape, cut = value_of(value).shape or (), {axis for axis, _, _ in bounds_of(self.write) or ()}
        place = self._noted(getitem, (base,), {"index": index}, shape)
        sizes = tuple(self._size(place, axis) if size == 1 or axis in cut else -1 for axis, size in enumerate(shape))
        return self._noted(expand, (value,), {"sizes": sizes}, shape)

    def _size(self, base: fx.Node, axis: int) -> fx.Node:
        made = self.gm.graph.create_node("call_method", "size", (base, axis), {})
        made.meta[VALUE], made.meta[SOURCE] = Value(None, None), replace(source_of(self.write), origin=(made.name,))
        return made

    def _cut(self, base: fx.Node, axis: int, begin: int | None, end: int | None) -> fx.Node:
        shape = list(value_of(base).shape or ())
        shape[axis] = len(range(*slice(begin, end).indices(shape[axis])))
        index = (*(slice(None) for _ in range(axis)), slice(begin, end))
        return self._noted(getitem, (base,), {"index": index}, tuple(shape))

    def _noted(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...] | None) -> fx.Node:
        made = self.gm.graph.create_node("call_function", target, args, kwargs)
        made.meta[VALUE] = Value(shape, value_of(self.write.args[2]).dtype)  # type: ignore[arg-type]
        made.meta[SOURCE] = replace(source_of(self.write), origin=(made.name,))
        return made
