"""Parts of a tensor: slices, indices, and cuts into several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
import torch

from qcompiler.export.onnx_qdq.refusals import NoForm
from qcompiler.export.onnx_qdq.site import Arg, Form, Made, Operand, Site
from qcompiler.stages.size_expressions import Size, add, is_size, times

FAR = torch.iinfo(torch.int64).max


@dataclass
class _Cut:
    """Slices of several axes at once."""

    starts: list[Size] = field(default_factory=list)
    ends: list[Size] = field(default_factory=list)
    axes: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def add(self, axis: int, start: Size, end: Size, step: int = 1) -> None:
        self.axes.append(axis)
        self.starts.append(start)
        self.ends.append(end)
        self.steps.append(step)

    def of(self, site: Site, value: ir.Value) -> ir.Value:
        if not self.axes:
            return value
        vector = site.extents.vector
        steps = None if set(self.steps) == {1} else site.ints(*self.steps)
        return site.call("Slice", value, vector(self.starts), vector(self.ends), site.ints(*self.axes), steps)


def getitem(site: Site) -> Made:
    """Numbers, slices, None, ..., and one tensor of integers or of bools."""
    x, index = next(iter(site.arguments.values())), site.get("index")
    if isinstance(x, (list, dict)):
        return _picked(x, index)
    if not isinstance(x, Operand):
        raise NoForm("what it picks from is no tensor")
    entries = _full(index if isinstance(index, list) else [index], x.rank)
    if len(entries) == 1 and isinstance(entries[0], Operand) and entries[0].dtype is torch.bool:
        return site.call("GatherND", x.value, site.call("Transpose", site.call("NonZero", entries[0].value), perm=[1, 0]))
    return _indexed(site, x, entries)


def _picked(parts: object, index: Arg) -> Made:
    """One of several values that stand in one."""
    try:
        named = isinstance(parts, dict) and isinstance(index, int) and index not in parts
        found: Made = (list(parts.values()) if named else parts)[index]  # type: ignore[index, attr-defined]
    except (TypeError, IndexError, KeyError):
        raise NoForm("it picks nothing that is known") from None
    return found


def _full(entries: list[Arg], rank: int) -> list[Arg]:
    """With `...` written out as slices."""
    taken = len([e for e in entries if e is not None and not _is_dots(e)])
    rest: list[Arg] = [slice(None)] * (rank - taken)
    at = next((i for i, e in enumerate(entries) if _is_dots(e)), None)
    return [*entries, *rest] if at is None else [*entries[:at], *rest, *entries[at + 1 :]]


def _is_dots(entry: object) -> bool:
    return entry is Ellipsis


def _indexed(site: Site, x: Operand, entries: Sequence[Arg]) -> ir.Value:
    cut, axis, gone, tensors = _Cut(), 0, [], []
    for entry in entries:
        if entry is None:
            continue
        if isinstance(entry, slice):
            _slice(cut, axis, entry)
        elif isinstance(entry, Operand):
            tensors.append((axis, entry))
        elif is_size(entry):
            cut.add(axis, entry, FAR if entry == -1 else add(entry, 1))
            gone.append(axis)
        else:
            raise NoForm(f"the index {entry!r:.40} has no op")
        axis += 1
    value = cut.of(site, x.value)
    if tensors:
        return _by_tensor(site, value, tensors, gone, None in entries)
    return value if not gone and None not in entries else site.extents.reshaped(value, None, site.shape)


def _by_tensor(site: Site, value: ir.Value, tensors: list[tuple[int, Operand]], gone: list[int], widened: bool) -> ir.Value:
    (axis, index), *more = tensors
    if any(tensor.dtype in (torch.bool, torch.uint8) for _, tensor in tensors):  # bytes are bools there
        raise NoForm("bools beside other indices have no op")
    if more:
        return _by_tensors(site, value, tensors, bool(gone) or widened)
    made = site.call("Gather", value, site.operand(index, torch.int64), axis=axis)
    if gone and any(a > axis for a in gone):
        raise NoForm("a number behind a tensor in an index has no op")
    return site.extents.reshaped(made, None, site.shape) if gone or widened else made


def _by_tensors(site: Site, value: ir.Value, tensors: list[tuple[int, Operand]], others: bool) -> ir.Value:
    """Tensors for dimensions that stand side by side: these become one, of which the place is computed."""
    x, first, after = site.x, tensors[0][0], tensors[-1][0] + 1
    if others or value is not x.value or [axis for axis, _ in tensors] != list(range(first, after)):
        raise NoForm("several tensors as an index, beside numbers, None or slices, or for dimensions apart, have no op")
    place: ir.Value | None = None
    for axis, tensor in tensors:
        size = site.extents.scalar(x.sizes[axis])
        own = site.call("Mod", site.operand(tensor, torch.int64), size)  # -1 is the last
        place = own if place is None else site.call("Add", site.call("Mul", place, size), own)
    assert place is not None
    merged = (*x.sizes[:first], times(*x.sizes[first:after]), *x.sizes[after:])
    return site.call("Gather", site.extents.reshaped(value, x.sizes, merged), place, axis=first)


def _slice(cut: _Cut, axis: int, entry: slice) -> None:
    if (entry.start, entry.stop, entry.step) == (None, None, None):
        return
    step = 1 if entry.step is None else entry.step
    if not isinstance(step, int) or not all(end is None or is_size(end) for end in (entry.start, entry.stop)):
        raise NoForm("the ends of a slice are no known numbers")
    cut.add(axis, 0 if entry.start is None else entry.start, FAR if entry.stop is None else entry.stop, step)


def narrow(site: Site) -> ir.Value:
    start, length, cut = site.get("start"), site.get("length"), _Cut()
    if not is_size(start) or not is_size(length):
        raise NoForm("where it begins, or how long it is, is no known number")
    cut.add(site.x.axis(site.get("dim")), start, add(start, length))
    return cut.of(site, site.x.value)


def select(site: Site) -> ir.Value:
    index = site.get("index")
    if not is_size(index):
        raise NoForm("its index is no known number")
    return site.call("Gather", site.x.value, site.extents.scalar(index), axis=site.x.axis(site.get("dim")))


def split(site: Site) -> Made:
    """Parts of the sizes that the results have."""
    axis, sizes = site.x.axis(site.get("dim")), _sizes_of_parts(site)
    lengths = [size[axis] for size in sizes]
    parts = site.graph.add("Split", site.x.value, site.extents.vector(lengths), outputs=len(lengths), axis=axis)
    return list(parts)


def _sizes_of_parts(site: Site) -> list[tuple[Size, ...]]:
    parts = site.result if isinstance(site.result, list) else []
    known = [part for part in parts if isinstance(part, tuple)]
    if not known or len(known) < len(parts):
        raise NoForm("the sizes of its parts, or their number, are known to nobody before it runs")
    return known


def unbind(site: Site) -> Made:
    axis, count = site.x.axis(site.get("dim")), len(_sizes_of_parts(site))
    return [site.call("Gather", site.x.value, site.constant(i, torch.int64), axis=axis) for i in range(count)]


FORMS: dict[str, Form] = {
    "getitem": getitem, "narrow": narrow, "select": select, "split": split, "chunk": split, "tensor_split": split, "unbind": unbind,
}  # fmt: skip
