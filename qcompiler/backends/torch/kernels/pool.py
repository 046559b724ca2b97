"""Pools, means, sums, extremes and interpolate."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qcompiler.backends.torch.runtime import fit, float_windows, floats
from qcompiler.backends.torch.runtime import functions as runtime
from qcompiler.backends.torch.site import ENGINES, Emit, Kernel, Operand, Site, ints
from qcompiler.ops.spec import Family

X86 = ("x86", "fbgemm", "onednn")
ADAPTIVE_AVG: dict[str, Any] = {
    "adaptive_avg_pool2d": float_windows.adaptive_avg_pool2d_float,
    "adaptive_avg_pool3d": float_windows.adaptive_avg_pool3d_float,
}
EXTREMES: dict[str, Any] = {"amax": runtime.amax, "amin": runtime.amin}
ADAPTIVE_MAX: dict[str, Any] = {
    "adaptive_max_pool1d": float_windows.adaptive_max_pool1d_float,
    "adaptive_max_pool2d": float_windows.adaptive_max_pool2d_float,
    "adaptive_max_pool3d": float_windows.adaptive_max_pool3d_float,
}
MAX: dict[str, Any] = {"max_pool2d": float_windows.max_pool2d_float, "max_pool3d": float_windows.max_pool3d_float}


def refuse_input(site: Site) -> str | None:
    return None if isinstance(site.args[0], Operand) else "its input is not quantized"


def emit_same(site: Site, emit: Emit) -> fx.Node:
    """The op itself: it runs on quint8 tensors and keeps their scale."""
    return emit.call(site.op.fn, *site.args, **site.plain())


def emit_settled(site: Site, emit: Emit) -> fx.Node:
    """The op itself, on an input whose strides tell one layout: torch's garble one that is dense in two."""
    return emit.call(site.op.fn, emit.call(fit.settled, site.args[0]), *site.args[1:], **site.plain())


def emit_1d(site: Site, emit: Emit) -> fx.Node:
    """A pool of one dimension on a contiguous input: torch's garble (1, C, L) views of channels_last tensors."""
    contiguous = emit.call(torch.ops.aten.contiguous.default, site.args[0])
    return emit.call(site.op.fn, fitting(site, emit, emit.call(fit.settled, contiguous)), *site.args[1:], **site.plain())


def emit_pool(site: Site, emit: Emit) -> fx.Node:
    """`emit_settled` of a pool with a window, on an input into which that fits."""
    return emit.call(site.op.fn, fitting(site, emit, emit.call(fit.settled, site.args[0])), *site.args[1:], **site.plain())


def fitting(site: Site, emit: Emit, source: fx.Node) -> fx.Node:
    """The input of a pool, refused where its window does not fit in: int8 average pools would make something up."""
    if not (site.op.family is Family.POOL and site.op.averages(site.attributes) and "kernel_size" in site.attributes):
        return source
    dims = _dims(site)
    kernel = ints(site.get("kernel_size"), dims)
    stride, padding = ints(site.get("stride") or kernel, dims), ints(site.get("padding", 0), dims)
    rounded_up = [s - 1 if site.get("ceil_mode", False) else 0 for s in stride]
    smallest = [k - 2 * p - more for k, p, more in zip(kernel, padding, rounded_up)]
    least = [max(n, 1) for n in smallest]
    return emit.call(fit.at_least, source, smallest, least) if max(least) > 1 else source


def refuse_unbatched_qnnpack(site: Site) -> str | None:
    """qnnpack's 2-d pools raise on inputs without a batch dimension."""
    unbatched = site.engine == "qnnpack" and site.rank == 3 and site.op.dims != 1
    return refuse_input(site) or ("qnnpack pools need a batch dimension" if unbatched else None)


def _dims(site: Site) -> int:
    assert site.op.dims is not None
    return site.op.dims


def refuse_single(site: Site) -> str | None:
    """qnnpack has no pools of one element."""
    single = all(k == 1 for k in ints(site.get("kernel_size"), _dims(site)))
    return refuse_unbatched_qnnpack(site) or ("qnnpack has no pool of one element" if single and site.engine == "qnnpack" else None)


def refuse_max(site: Site) -> str | None:
    """qnnpack reads other elements than the window's where it has both padding and dilation."""
    padding, dilation = (ints(site.get(name, default), _dims(site)) for name, default in (("padding", 0), ("dilation", 1)))
    both = site.engine == "qnnpack" and any(padding) and any(d > 1 for d in dilation)
    return refuse_single(site) or ("qnnpack's max pools are wrong with padding and dilation" if both else None)


def refuse_avg(site: Site) -> str | None:
    """qnnpack divides by the window's size, whatever it is told."""
    divisor = site.get("divisor_override") is not None
    padding = any(ints(site.get("padding", 0), _dims(site))) and not site.get("count_include_pad", True)
    ignored = "divisor_override" if divisor else "count_include_pad=False" if padding else None
    return refuse_single(site) or (f"qnnpack ignores {ignored}" if ignored and site.engine == "qnnpack" else None)


def emit_adaptive_avg_float(site: Site, emit: Emit) -> fx.Node:
    size = ints(site.get("output_size"), _dims(site))
    return emit.call(ADAPTIVE_AVG[site.op.name], site.args[0], size, site.scale, site.zero_point)


def emit_mean(site: Site, emit: Emit) -> fx.Node:
    dim = site.get("dim")
    dims = None if dim is None else [dim] if isinstance(dim, int) else list(dim)
    return emit.call(floats.mean_float, site.args[0], dims, bool(site.get("keepdim", False)), site.scale, site.zero_point)


def emit_sum(site: Site, emit: Emit) -> fx.Node:
    dim = site.get("dim")
    dims = None if dim is None else [dim] if isinstance(dim, int) else list(dim)
    return emit.call(floats.sum_float, site.args[0], dims, bool(site.get("keepdim", False)), site.scale, site.zero_point)


def emit_extreme(site: Site, emit: Emit) -> fx.Node:
    dim = site.get("dim", ())
    dims = [dim] if isinstance(dim, int) else list(dim)
    return emit.call(EXTREMES[site.op.name], site.args[0], dims, bool(site.get("keepdim", False)), site.scale, site.zero_point)


def emit_avg_float(site: Site, emit: Emit) -> fx.Node:
    """Of one or two dimensions."""
    kernel = ints(site.get("kernel_size"), _dims(site))
    stride, padding = ints(site.get("stride") or kernel, len(kernel)), ints(site.get("padding", 0), len(kernel))
    flat, (kernel, stride, padding) = _as_2d(site, emit, (kernel, 1), (stride, 1), (padding, 0))
    rest = (bool(site.get("ceil_mode", False)), bool(site.get("count_include_pad", True)), site.get("divisor_override"))
    pooled = emit.call(float_windows.avg_pool2d_float, flat, kernel, stride, padding, *rest, site.scale, site.zero_point)
    return _like_1d(site, emit, pooled)


def emit_max_float(site: Site, emit: Emit) -> fx.Node:
    dims = _dims(site)
    kernel = ints(site.get("kernel_size"), dims)
    stride, padding, dilation = (
        ints(site.get(name) or default, dims) for name, default in (("stride", kernel), ("padding", 0), ("dilation", 1))
    )
    flat, settings = _as_2d(site, emit, (kernel, 1), (stride, 1), (padding, 0), (dilation, 1))
    run = MAX["max_pool3d" if dims == 3 else "max_pool2d"]
    return _like_1d(site, emit, emit.call(run, flat, *settings, bool(site.get("ceil_mode", False))))


def _as_2d(site: Site, emit: Emit, *settings: tuple[list[int], int]) -> tuple[Any, list[list[int]]]:
    """A pool's input and its settings, one of one dimension as one of two; the numbers are those of the new dimension."""
    if _dims(site) != 1:
        return site.args[0], [values for values, _ in settings]
    return emit.call(torch.ops.aten.unsqueeze.default, site.args[0], -2), [[more, *values] for values, more in settings]


def _like_1d(site: Site, emit: Emit, result: fx.Node) -> fx.Node:
    return emit.call(torch.ops.aten.squeeze.dim, result, -2) if _dims(site) == 1 else result


def refuse_sizes(site: Site) -> str | None:
    size = site.get("output_size")
    known = isinstance(size, int) or (isinstance(size, (tuple, list)) and all(isinstance(s, int) for s in size))
    return refuse_input(site) or (None if known else "its output size is not given in numbers")


def emit_adaptive_max(site: Site, emit: Emit) -> fx.Node:
    size = ints(site.get("output_size"), _dims(site))
    return emit.call(ADAPTIVE_MAX[site.op.name], site.args[0], size, site.scale, site.zero_point)


def _mean_dims(site: Site) -> tuple[int, ...] | None:
    dim = site.get("dim")
    dims = (dim,) if isinstance(dim, int) else tuple(dim) if dim is not None else None
    rank = site.rank
    return dims if dims is None or rank is None else tuple(sorted(d % rank for d in dims))


def refuse_global(site: Site) -> str | None:
    return refuse_input(site) or (None if site.rank == 4 and _mean_dims(site) == (2, 3) else "not a mean over height and width")


def emit_global(site: Site, emit: Emit) -> fx.Node:
    """mean over (H, W): the pool is three times as fast on channels_last, which convolutions make."""
    pooled = emit.call(torch.ops.aten.adaptive_avg_pool2d.default, emit.call(fit.settled, site.args[0]), [1, 1])
    return pooled if site.get("keepdim", False) else emit.call(torch.ops.aten.flatten.using_ints, pooled, 1)


def refuse_interpolate(site: Site) -> str | None:
    """Only nearest has a good kernel: int8 bilinear takes three times as long as float. Where a size happens to stay or to double,
    it takes a factor to be 1 or 2: so is every whole one.
    """
    if site.get("mode", "nearest") not in ("nearest", "nearest-exact") or site.rank not in (4, 5):
        return "no int8 kernel for this mode and rank"
    factor = site.get("scale_factor")
    factors = factor if isinstance(factor, (tuple, list)) else [1 if factor is None else factor]
    if not site.get("recompute_scale_factor") and not all(isinstance(f, (int, float)) and f == int(f) for f in factors):
        return "the int8 kernel rounds a factor that is no whole number"
    return refuse_input(site)


def _resizing(site: Site, emit: Emit) -> tuple[object, object, object]:
    """Sizes, factors (one of them None) and recompute_scale_factor."""
    dims = (site.rank or 4) - 2
    size, factor = site.get("size"), site.get("scale_factor")
    sizes = None if size is None else [size] * dims if isinstance(size, (int, fx.Node)) else list(size)
    each = factor if isinstance(factor, (tuple, list)) else [factor] * dims
    factors = None if factor is None else [emit.call(float, f) if isinstance(f, fx.Node) else float(f) for f in each]
    return sizes, factors, site.get("recompute_scale_factor")


def emit_nearest(site: Site, emit: Emit) -> fx.Node:
    sizes, factors, recompute = _resizing(site, emit)
    return emit.call(fit.nearest, emit.call(fit.settled, site.args[0]), sizes, factors, site.get("mode", "nearest"), recompute)


def emit_interpolate_float(site: Site, emit: Emit) -> fx.Node:
    sizes, factors, recompute = _resizing(site, emit)
    rest = (site.get("mode", "nearest"), site.get("align_corners"), recompute, bool(site.get("antialias", False)))
    return emit.call(float_windows.interpolate_float, site.args[0], sizes, factors, *rest, site.scale, site.zero_point)


KERNELS = (
    Kernel("max_pool1d", ENGINES, emit_1d, refuse_max),
    Kernel("max_pool1d", ("qnnpack",), emit_max_float, refuse_input, note="float arithmetic"),
    Kernel("max_pool2d", ENGINES, emit_pool, refuse_max),
    Kernel("max_pool2d", ("qnnpack",), emit_max_float, refuse_input, note="float arithmetic"),
    Kernel("max_pool3d", X86, emit_pool, refuse_input),
    Kernel("max_pool3d", ("qnnpack",), emit_max_float, refuse_input, note="float arithmetic: qnnpack has no 3-d max pool"),
    Kernel("avg_pool1d", ENGINES, emit_1d, refuse_avg),
    Kernel("avg_pool1d", ("qnnpack",), emit_avg_float, refuse_input, note="float arithmetic"),
    Kernel("avg_pool2d", ENGINES, emit_pool, refuse_avg),
    Kernel("avg_pool2d", ("qnnpack",), emit_avg_float, refuse_input, note="float arithmetic"),
    Kernel("avg_pool3d", ENGINES, emit_pool, refuse_input),
    Kernel("adaptive_avg_pool1d", ENGINES, emit_1d, refuse_input),
    Kernel("adaptive_avg_pool2d", ENGINES, emit_settled, refuse_unbatched_qnnpack),
    Kernel("adaptive_avg_pool3d", X86, emit_settled, refuse_input),
    *(Kernel(name, ("qnnpack",), emit_adaptive_avg_float, refuse_sizes, note="float arithmetic") for name in ADAPTIVE_AVG),
    *(Kernel(name, ENGINES, emit_adaptive_max, refuse_sizes, note="float arithmetic") for name in ADAPTIVE_MAX),
    Kernel("mean", ENGINES, emit_global, refuse_global),
    Kernel("mean", ENGINES, emit_mean, refuse_input, note="float: torch's own raises on the channels_last_3d that conv3d makes"),
    Kernel("sum", ENGINES, emit_sum, refuse_input, note="float arithmetic"),
    *(Kernel(name, ENGINES, emit_extreme, refuse_input) for name in EXTREMES),
    Kernel("interpolate", ENGINES, emit_nearest, refuse_interpolate),
    Kernel("interpolate", ENGINES, emit_interpolate_float, refuse_input, note="float arithmetic"),
)
