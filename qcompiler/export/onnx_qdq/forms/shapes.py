"""What moves or repeats values."""

from __future__ import annotations

import onnx_ir as ir
import torch

from qcompiler.export.onnx_qdq.refusals import NoForm
from qcompiler.export.onnx_qdq.site import Form, Made, Operand, Site

FAR = torch.iinfo(torch.int64).max


def reshaped(site: Site) -> ir.Value:
    """Whatever keeps the order of values: the result's sizes say all."""
    return site.extents.reshaped(site.x.value, site.x.shape, site.shape)


def permute(site: Site) -> ir.Value:
    return site.call("Transpose", site.x.value, perm=[site.x.axis(dim) for dim in site.integers("dims")])


def transpose(site: Site) -> ir.Value:
    order = list(range(site.x.rank))
    a, b = site.x.axis(site.get("dim0")), site.x.axis(site.get("dim1"))
    order[a], order[b] = order[b], order[a]
    return site.call("Transpose", site.x.value, perm=order)


def matrix_transposed(site: Site) -> ir.Value:
    order = list(range(site.x.rank))
    return site.call("Transpose", site.x.value, perm=[*order[:-2], *reversed(order[-2:])])


def expand(site: Site) -> ir.Value:
    return site.call("Expand", site.x.value, site.extents.vector(site.shape))


def repeat(site: Site) -> ir.Value:
    counts = site.get("sizes")
    counts = counts if isinstance(counts, list) else [counts]
    more = len(counts) - site.x.rank
    value = site.x.value if not more else site.extents.reshaped(site.x.value, None, (*[1] * more, *site.x.sizes))
    return site.call("Tile", value, site.extents.vector(counts))  # type: ignore[arg-type]


def repeat_interleave(site: Site) -> ir.Value:
    """Each slice as often, one behind the other: spread along a new dimension behind its own."""
    dim, count = site.get("dim"), int(site.number("repeats"))
    sizes = site.x.sizes
    if dim is None:
        flat = site.call("Reshape", site.x.value, site.ints(-1, 1))
        return site.call("Reshape", site.call("Tile", flat, site.ints(1, count)), site.ints(-1))
    axis = site.x.axis(dim)
    apart = site.call("Unsqueeze", site.x.value, site.ints(axis + 1))
    wide = site.call("Tile", apart, site.ints(*(count if i == axis + 1 else 1 for i in range(len(sizes) + 1))))
    return site.extents.reshaped(wide, None, site.shape)


def roll(site: Site) -> ir.Value:
    shifts, dims = site.integers("shifts"), site.get("dims")
    if not dims:
        raise NoForm("it rolls over all dimensions at once")
    value = site.x.value
    for shift, dim in zip(shifts, site.integers("dims")):
        axis = site.x.axis(dim)
        size = site.x.sizes[axis]
        shift = shift % size if isinstance(size, int) and size else shift
        if shift:
            end = site.call("Slice", value, site.ints(-shift), site.ints(FAR), site.ints(axis))
            begin = site.call("Slice", value, site.ints(0), site.ints(-shift), site.ints(axis))
            value = site.call("Concat", end, begin, axis=axis)
    return value


def flip(site: Site) -> ir.Value:
    axes = [site.x.axis(dim) for dim in site.integers("dims")]
    back, far = site.ints(*[-1] * len(axes)), site.ints(*[-FAR] * len(axes))
    return site.call("Slice", site.x.value, back, far, site.ints(*axes), back)


def triangle(upper: int) -> Form:
    return lambda site: site.call("Trilu", site.x.value, site.operand(site.get("diagonal") or 0, torch.int64), upper=upper)


def _gathered(site: Site, op: str) -> ir.Value:
    return site.call(op, site.x.value, site.operand(site.get("index"), torch.int64), axis=site.x.axis(site.get("dim")))


def unfold_dimension(site: Site) -> ir.Value:
    """Windows along a dimension, which is their number then; what a window holds is the last dimension."""
    axis, size, step = site.x.axis(site.get("dimension")), int(site.number("size")), int(site.number("step"))
    length = site.x.fixed(axis)[0]
    starts = torch.arange(0, length - size + 1, step)
    index = site.constant(starts[:, None] + torch.arange(size), torch.int64)
    order = [*range(axis + 1), *range(axis + 2, site.x.rank + 1), axis + 1]
    return site.call("Transpose", site.call("Gather", site.x.value, index, axis=axis), perm=order)


def diagonal(site: Site) -> ir.Value:
    """Both dimensions made one, of which the places of the diagonal are picked."""
    first, second, offset = site.x.axis(site.get("dim1")), site.x.axis(site.get("dim2")), int(site.number("offset"))
    rows, columns = site.x.fixed(first, second)
    rest = [axis for axis in range(site.x.rank) if axis not in (first, second)]
    moved = site.call("Transpose", site.x.value, perm=[*rest, first, second])
    flat = site.extents.reshaped(moved, None, (*(site.x.sizes[axis] for axis in rest), rows * columns))
    places = torch.arange(rows * columns).reshape(rows, columns).diagonal(offset)
    return site.call("Gather", flat, site.constant(places.contiguous()), axis=-1)


def unfold(site: Site) -> ir.Value:
    """(N, C, H, W) -> (N, C kh kw, places): along each axis the places of each tap of the window are picked."""
    kernel, dilation, padding, stride = (pair * 2 if len(pair) == 1 else pair for pair in (
        site.integers(name) for name in ("kernel_size", "dilation", "padding", "stride")))  # fmt: skip
    sizes = [size + 2 * more for size, more in zip(site.x.fixed(2, 3), padding)]
    value = site.call("Pad", site.x.value, site.ints(0, 0, *padding, 0, 0, *padding))
    for axis, size, taps, apart, step in zip((2, 4), sizes, kernel, dilation, stride):
        starts = torch.arange(0, size - apart * (taps - 1), step)
        index = torch.arange(taps)[:, None] * apart + starts
        value = site.call("Gather", value, site.constant(index), axis=axis)
    return site.extents.reshaped(site.call("Transpose", value, perm=[0, 1, 2, 4, 3, 5]), None, site.shape)


def _parts(site: Site) -> list[Operand]:
    parts = next(iter(site.arguments.values()))
    if not isinstance(parts, list) or not all(isinstance(part, Operand) for part in parts):
        raise NoForm("what it joins is no list of tensors")
    return parts  # type: ignore[return-value]


def _joined_axis(site: Site, rank: int) -> int:
    dim = site.get("dim")
    if not isinstance(dim, int):
        raise NoForm("its dimension is no number")
    return dim % rank


def cat(site: Site) -> ir.Value:
    parts = _parts(site)
    values = [site.operand(part, site.dtype) for part in parts]
    return site.call("Concat", *values, axis=_joined_axis(site, parts[0].rank))


def stack(site: Site) -> ir.Value:
    parts = _parts(site)
    axis = _joined_axis(site, parts[0].rank + 1)
    values = [site.call("Unsqueeze", site.operand(part, site.dtype), site.ints(axis)) for part in parts]
    return site.call("Concat", *values, axis=axis)


def topk(site: Site) -> Made:
    values, indices = site.graph.add("TopK", site.x.value, site.extents.one(site.get("k")), outputs=2,  # type: ignore[arg-type]
                                     axis=site.x.axis(site.get("dim")), largest=int(site.flag("largest")), sorted=1)  # fmt: skip
    found = site.result if isinstance(site.result, list) else [None, None]
    sizes = [size if isinstance(size, tuple) else None for size in found]
    return [Operand(values, sizes[0], site.x.dtype), Operand(indices, sizes[1], torch.int64)]


FORMS: dict[str, Form] = {
    **dict.fromkeys(("flatten", "unflatten", "reshape", "squeeze", "unsqueeze"), reshaped), "permute": permute, "transpose": transpose,
    "matrix_transpose": matrix_transposed, "expand": expand, "repeat": repeat, "repeat_interleave": repeat_interleave, "roll": roll,
    "flip": flip, "tril": triangle(0), "triu": triangle(1), "index_select": lambda site: _gathered(site, "Gather"),
    "gather": lambda site: _gathered(site, "GatherElements"), "unfold_dimension": unfold_dimension, "cat": cat, "stack": stack,
    "topk": topk, "diagonal": diagonal, "unfold": unfold,
}  # fmt: skip
