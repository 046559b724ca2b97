"""Functions of lowered graphs that give kernels what they are right for: strides that say which layout is meant, inputs large enough.

Like functions.py: self-contained, scriptable, copied into exported files. They decide by sizes at each call, so torch.jit.trace takes
them as scripts. Which kernels want what: onednn_faults.py, pool.py.
One with `fits = True` computes nothing: what it gives is its input in another form.
"""
# no `from __future__ import annotations`: torch.jit reads the annotations themselves

import torch


@torch.jit.script_if_tracing  # type: ignore[untyped-decorator]
def settled(x: torch.Tensor) -> torch.Tensor:
    """x with the strides of its own memory's layout, no copy: (N, C, *sizes) of 3 to 5 dimensions.

    Dimensions of one element have any stride after a view, so that x may be dense in two layouts at once. torch's pools and upsampling
    ask once whether it is channels_last and once whether its strides look like it, and mix up the values where the answers differ.
    """
    dims = x.dim()
    if dims == 4:
        if not x.is_contiguous(memory_format=torch.channels_last):
            return x
        row = x.size(3) * x.size(1)
        if x.stride(3) == x.size(1) and x.stride(2) == row and x.stride(0) == row * x.size(2):
            return x
    elif dims == 5:
        if not x.is_contiguous(memory_format=torch.channels_last_3d):
            return x
    elif dims != 3 or x.size(2) != 1 or not x.is_contiguous():
        return x
    strides, step = [1] * dims, x.size(1)
    for i in range(dims - 1, 1, -1):
        strides[i] = step
        step = step * x.size(i)  # torch.jit.trace has tensors here: no change in place
    strides[0] = step
    return torch.as_strided(x, x.size(), strides)


settled.fits = True


@torch.jit.script_if_tracing  # type: ignore[untyped-decorator]
def group_norm(
    x: torch.Tensor, num_groups: int, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, scale: float, zero_point: int
) -> torch.Tensor:
    """quantized::group_norm of (N, C, *sizes), which is wrong on channels_last tensors where a group has fewer elements than there are
    images (found with 1 to 70 images; twice as many here). Flat ones, of three dimensions, have no such layout.
    """
    few = x.dim() > 3 and x.numel() < 2 * x.size(0) * x.size(0) * num_groups
    y = torch.ops.quantized.group_norm(x.flatten(2) if few else x, num_groups, weight, bias, eps, scale, zero_point)
    return y.reshape(x.shape) if few else y  # type: ignore[no-any-return]


@torch.jit.script_if_tracing  # type: ignore[untyped-decorator]
def nearest(
    x: torch.Tensor, size: list[int] | None, scale_factor: list[float] | None, mode: str, recompute_scale_factor: bool | None
) -> torch.Tensor:
    """Nearest upsampling of (N, C, H, W) or (N, C, D, H, W).

    In three dimensions torch's int8 kernel mixes up the images where the size stays, and refuses an empty batch: both go through
    floats, exactly.
    """
    if x.size(0) > 0:
        made = torch.nn.functional.interpolate(x, size, scale_factor, mode, None, recompute_scale_factor)
        if made.shape != x.shape:
            return made
    y = torch.nn.functional.interpolate(x.dequantize(), size, scale_factor, mode, None, recompute_scale_factor)
    return torch.quantize_per_tensor(y, x.q_scale(), x.q_zero_point(), torch.quint8)


@torch.jit.script_if_tracing  # type: ignore[untyped-decorator]
def at_least(x: torch.Tensor, smallest: list[int], least: list[int]) -> torch.Tensor:
    """x (..., *sizes) with real zeros behind its ends up to the sizes `least`; x itself where it has them.

    Below `smallest` a window does not fit in, which float ops refuse; int8 kernels make something up, or end the process.
    A script gives another tensor of the same memory: a trace knows values by their tensors, and would take it for x from there on.
    """
    dims = len(least)
    if x.size(-1) >= least[-1] and (dims == 1 or (dims == 2 and x.size(-2) >= least[0])):
        return x.detach() if torch.jit.is_scripting() else x  # type: ignore[attr-defined]
    missing = 0
    for i in range(dims):
        missing = max(missing, least[i] - x.size(i - dims))
    if missing <= 0:
        return x.detach() if torch.jit.is_scripting() else x  # type: ignore[attr-defined]
    pad: list[int] = []
    for i in range(dims):
        size = x.size(-1 - i)
        if size < smallest[-1 - i]:
            if x.size(0) == 0:
                return x  # a transposed convolution may have no rows of no images
            raise RuntimeError(f"Kernel size can't be greater than actual input size: {smallest} elements are the least, got {x.shape}")
        pad += [0, max(least[-1 - i] - size, 0)]
    y = torch.nn.functional.pad(x.dequantize(), pad)
    return torch.quantize_per_tensor(y, x.q_scale(), x.q_zero_point(), torch.quint8)


at_least.fits = True


@torch.jit.script_if_tracing  # type: ignore[untyped-decorator]
def without_more(y: torch.Tensor, x: torch.Tensor, smallest: list[int], least: list[int], stride: list[int]) -> torch.Tensor:
    """Of a convolution's result y on `at_least(x, ...)`, the part that x alone has: (size - smallest) // stride + 1 elements."""
    dims = len(least)
    if x.size(-1) >= least[-1] and (dims == 1 or (dims == 2 and x.size(-2) >= least[0])):
        return y
    for i in range(dims):
        if x.size(i - dims) < least[i]:
            y = y.narrow(i - dims, 0, (x.size(i - dims) - smallest[i]) // stride[i] + 1)
    return y


without_more.fits = True


@torch.jit.script_if_tracing  # type: ignore[untyped-decorator]
def with_more(y: torch.Tensor, x: torch.Tensor, smallest: list[int], least: list[int], stride: list[int]) -> torch.Tensor:
    """What is added to a convolution's result on x, with zeros up to the result on `at_least(x, ...)`."""
    pad: list[int] = []
    dims, missing = len(least), 0
    for j in range(dims):
        i = dims - 1 - j
        size = (x.size(i - dims) - smallest[i]) // stride[i] + 1
        more = (least[i] - smallest[i]) // stride[i] + 1 - size
        fits = y.dim() >= dims - i and y.size(i - dims) == size
        pad += [0, more if more > 0 and size > 0 and fits else 0]
        missing = max(missing, pad[-1])
    if missing == 0:
        return y
    return torch.quantize_per_tensor(torch.nn.functional.pad(y.dequantize(), pad), y.q_scale(), y.q_zero_point(), torch.quint8)


with_more.fits = True
