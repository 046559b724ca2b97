"""Pools over windows, adaptive ones, and reductions over whole dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch

from qcompiler.export.onnx_qdq.refusals import NoForm
from qcompiler.export.onnx_qdq.site import Form, Made, Operand, Site
from qcompiler.stages.size_expressions import Size, times


def _each(site: Site, name: str, dims: int, default: list[int]) -> list[int]:
    if site.get(name) in (None, []):
        return default
    found = site.integers(name)
    return found * dims if len(found) == 1 else found


def _batched(site: Site, dims: int) -> Operand:
    if site.x.rank != dims + 2:
        raise NoForm("its input has no batch dimension")
    return site.x


def _ends(site: Site, dims: int, kernel: list[int], stride: list[int], dilation: list[int]) -> list[int] | None:
    """What ceil_mode adds behind each axis; None where that depends on sizes that change."""
    padding, more = _each(site, "padding", dims, [0] * dims), []
    for i in range(dims):
        size, out = site.x.sizes[2 + i], site.shape[2 + i]
        if not isinstance(size, int) or not isinstance(out, int):
            return None
        more.append(max(0, (out - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 - size - 2 * padding[i]))
    return more


def max_pool(dims: int) -> Form:
    def form(site: Site) -> ir.Value:
        x, kernel = _batched(site, dims), _each(site, "kernel_size", dims, [])
        stride, dilation = _each(site, "stride", dims, kernel), _each(site, "dilation", dims, [1] * dims)
        padding = _each(site, "padding", dims, [0] * dims)
        return site.call("MaxPool", x.value, kernel_shape=kernel, strides=stride, dilations=dilation, pads=padding * 2,
                         ceil_mode=int(site.flag("ceil_mode")))  # fmt: skip

    return form


def avg_pool(dims: int) -> Form:
    def form(site: Site) -> ir.Value:
        """Where ceil_mode makes windows that hang over the end, torch counts the padding within and nothing beyond."""
        x, kernel = _batched(site, dims), _each(site, "kernel_size", dims, [])
        stride, padding = _each(site, "stride", dims, kernel), _each(site, "padding", dims, [0] * dims)
        counts, ceil, value, pads = site.flag("count_include_pad"), site.flag("ceil_mode"), x.value, padding * 2
        if ceil:
            more = _ends(site, dims, kernel, stride, [1] * dims)
            if more is None:
                raise NoForm("an average with ceil_mode needs fixed sizes: dynamic_shapes={} fixes all")
            if any(more) and counts and any(padding):
                value = site.call("Pad", value, site.ints(0, 0, *padding, 0, 0, *padding))
                pads, counts = [0] * (2 * dims), False
            elif any(more):
                counts = False
            pads = [*pads[:dims], *(p + m for p, m in zip(pads[dims:], more))]
        override = site.get("divisor_override")
        made = site.call("AveragePool", value, kernel_shape=kernel, strides=stride, pads=pads,
                         count_include_pad=int(counts or override is not None))  # fmt: skip
        if override is None:
            return made
        return site.call("Mul", made, site.constant(float(torch.Size(kernel).numel()) / site.number("divisor_override"), torch.float32))

    return form


def adaptive(kind: str, dims: int) -> Form:
    whole, windowed = ("GlobalAveragePool", "AveragePool") if kind == "avg" else ("GlobalMaxPool", "MaxPool")

    def form(site: Site) -> ir.Value:
        x = _batched(site, dims)
        sizes, wanted = x.sizes[2:], site.shape[2:]
        if all(size == 1 for size in wanted):
            return site.call(whole, x.value)
        if sizes == wanted:
            return x.value
        if all(isinstance(s, int) and isinstance(w, int) and s % w == 0 for s, w in zip(sizes, wanted)):
            kernel = [s // w for s, w in zip(sizes, wanted)]  # type: ignore[operator]
            return site.call(windowed, x.value, kernel_shape=kernel, strides=kernel)
        if kind == "max":
            raise NoForm("its windows have several sizes: dynamic_shapes={} may help, where the size of its result divides its input's")
        return _averages(site, x, sizes, wanted)

    return form


def _averages(site: Site, x: Operand, sizes: Sequence[Size], wanted: Sequence[Size]) -> ir.Value:
    """Along each axis a product with a matrix of averages: windows of several sizes, whatever the input's size is."""
    value, rank = x.value, x.rank
    for i, (size, count) in enumerate(zip(sizes, wanted)):
        axis = 2 + i
        order = list(range(rank))
        order[axis], order[-1] = order[-1], order[axis]
        value = value if axis == rank - 1 else site.call("Transpose", value, perm=order)
        value = site.call("MatMul", value, _matrix(site, size, count))
        value = value if axis == rank - 1 else site.call("Transpose", value, perm=order)
    return value


def _matrix(site: Site, size: Size, count: Size) -> ir.Value:
    """(size, count): 1 / length where a place lies in the window floor(i size / count) .. ceil((i + 1) size / count)."""
    extents, one = site.extents, site.constant(1, torch.int64)
    places = site.call("Unsqueeze", site.call("Range", site.constant(0, torch.int64), extents.scalar(size), one), site.ints(1))
    index = site.call("Range", site.constant(0, torch.int64), extents.scalar(count), one)
    length, total = extents.scalar(size), extents.scalar(count)
    first = site.call("Div", site.call("Mul", index, length), total)
    above = site.call("Add", site.call("Mul", site.call("Add", index, one), length), site.call("Sub", total, one))
    inside = site.call("And", site.call("GreaterOrEqual", places, first), site.call("Less", places, site.call("Div", above, total)))
    ones = site.graph.cast(inside, torch.float32)
    return site.call("Div", ones, site.call("ReduceSum", ones, site.ints(0), keepdims=1))


def _axes(site: Site) -> list[int]:
    """The dimensions that are reduced, from the front; all where none is named."""
    found = site.get("dim")
    named = [] if found is None or found == [] or isinstance(found, bool) else [site.x.axis(dim) for dim in site.integers("dim")]
    return named or list(range(site.x.rank))


def reduce(op: str) -> Form:
    def form(site: Site) -> ir.Value:
        x, axes, keep = site.operand(site.x, site.dtype), _axes(site), site.flag("keepdim")
        spatial = list(range(2, site.x.rank))
        if op == "ReduceMean" and site.x.qparams is not None and spatial and sorted(axes) == spatial:
            made = site.call("GlobalAveragePool", x)  # which has an integer form
            return made if keep else site.extents.reshaped(site.again(made, site.output), None, site.shape)
        return site.call(op, x, site.ints(*axes), keepdims=int(keep))

    return form


def index_of(op: str) -> Form:
    def form(site: Site) -> ir.Value:
        if site.get("dim") is None:
            flat = site.call("Reshape", site.x.value, site.ints(-1))
            return site.call(op, flat, axis=0, keepdims=0)
        return site.call(op, site.x.value, axis=site.x.axis(site.get("dim")), keepdims=int(site.flag("keepdim")))

    return form


def any_of(site: Site) -> ir.Value:
    """Of what is not 0, small floats too."""
    true = site.graph.cast(site.operand(site.x, torch.bool), torch.int32)
    return site.graph.cast(site.call("ReduceMax", true, site.ints(*_axes(site)), keepdims=int(site.flag("keepdim"))), torch.bool)


def cumulative(site: Site) -> ir.Value:
    axis = site.constant(site.x.axis(site.get("dim")), torch.int64)
    return site.call("CumSum", site.operand(site.x, site.dtype), axis)


def norm(site: Site) -> ir.Value:
    if site.get("p") not in (None, 2, 2.0, "fro") or site.get("ord") not in (None, 2, 2.0):
        raise NoForm("no norm but the second has an op here")
    return site.call("ReduceL2", site.x.value, site.ints(*_axes(site)), keepdims=int(site.flag("keepdim")))


def spread(root: bool, with_mean: bool = False) -> Form:
    """The variance, its root, and the mean beside it: squares of what is left without the mean, over their number less the correction."""

    def form(site: Site) -> Made:
        x, axes, keep = site.operand(site.x, site.dtype), _axes(site), int(site.flag("keepdim"))
        mean = site.call("ReduceMean", x, site.ints(*axes), keepdims=1)
        left = site.call("Sub", x, mean)
        squares = site.call("ReduceSum", site.call("Mul", left, left), site.ints(*axes), keepdims=keep)
        count = site.operand(times(*(site.x.sizes[axis] for axis in axes)), site.dtype)
        count = site.call("Max", site.call("Sub", count, site.constant(_correction(site), site.dtype)), site.constant(0.0, site.dtype))
        made = site.call("Div", squares, count)
        made = site.call("Sqrt", made) if root else made
        return [made, site.call("ReduceMean", x, site.ints(*axes), keepdims=keep)] if with_mean else made

    return form


def _correction(site: Site) -> float:
    if site.get("correction") is not None:
        return float(site.number("correction"))
    unbiased = site.get("dim") if isinstance(site.get("dim"), bool) else site.get("unbiased")  # var(False) is of all elements
    return float(unbiased is None or bool(unbiased))


FORMS: dict[str, Form] = {
    **{f"max_pool{dims}d": max_pool(dims) for dims in (1, 2, 3)}, **{f"avg_pool{dims}d": avg_pool(dims) for dims in (1, 2, 3)},
    **{f"adaptive_{kind}_pool{dims}d": adaptive(kind, dims) for kind in ("avg", "max") for dims in (1, 2, 3)},
    "mean": reduce("ReduceMean"), "sum": reduce("ReduceSum"), "amax": reduce("ReduceMax"), "amin": reduce("ReduceMin"),
    "prod": reduce("ReduceProd"), "logsumexp": reduce("ReduceLogSumExp"), "argmax": index_of("ArgMax"), "argmin": index_of("ArgMin"),
    "any": any_of, "cumsum": cumulative, "norm": norm,
    "var": spread(False), "std": spread(True), "var_mean": spread(False, True), "std_mean": spread(True, True),
}  # fmt: skip
