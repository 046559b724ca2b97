"""Convolutions as others with more or fewer channels: strides as phases of a transposed one, groups repeated or merged.

Self-contained and scriptable, as functions.py.
"""
# no `from __future__ import annotations`: torch.jit reads the annotations themselves

import torch


def split_phases(weight: torch.Tensor, zero_point: torch.Tensor, stride: list[int], groups: int) -> torch.Tensor:
    """The int8 weight (I, O/g, *kernel) of a transposed convolution as that of its phases: (O * phases, I/g, *taps), see phases.py.

    Real zeros fill kernels up to a multiple of the stride. Output channels are in the order (group, phase, channel).
    """
    dims = len(stride)
    taps = [(weight.shape[2 + d] + stride[d] - 1) // stride[d] for d in range(dims)]
    shape, column = [weight.shape[0], weight.shape[1]], [1] * weight.dim()
    column[1] = -1
    for d in range(dims):
        shape.append(taps[d] * stride[d])
    wide = zero_point.to(weight.dtype).reshape(column).expand(shape).clone()
    part = wide
    for d in range(dims):
        part = part.narrow(2 + d, 0, weight.shape[2 + d])
    part.copy_(weight)
    parts, order, count = [groups, weight.shape[0] // groups, weight.shape[1]], [0], 1
    for d in range(dims):
        parts += [taps[d], stride[d]]
        order.append(4 + 2 * d)
        count *= stride[d]
    order += [2, 1]
    for d in range(dims):
        order.append(3 + 2 * d)
    result = [weight.shape[1] * groups * count, weight.shape[0] // groups]
    result += taps
    return wide.reshape(parts).permute(order).flip([dims + 3 + d for d in range(dims)]).reshape(result)


split_phases.once = True  # type: ignore[attr-defined]


def repeat_channels(x: torch.Tensor, groups: int, count: int) -> torch.Tensor:
    """A value for each channel (groups * n) as (groups, count, n) in one dimension."""
    return x.reshape(groups, 1, -1).repeat(1, count, 1).reshape(-1)  # of memory of its own: packs read a bias without its strides


repeat_channels.once = True  # type: ignore[attr-defined]


def join_phases(x: torch.Tensor, stride: list[int], groups: int, first: list[int], last: list[int]) -> torch.Tensor:
    """Interleaves (N, groups * phases * C, *sizes) to (N, groups * C, *(stride * size)) and cuts `first` and `last` off.

    The result is dense with channels last, as the kernels behind it want it (torch's cat is 5 times slower otherwise).
    """
    dims, count = len(stride), 1
    for s in stride:
        count *= s
    channels = x.shape[1] // count
    parts, order, joined = [x.shape[0]], [0], [x.shape[0]]
    for d in range(dims):
        parts.append(x.shape[2 + d])
        order += [1 + d, 2 + dims + d]
        joined.append(x.shape[2 + d] * stride[d])
    parts.append(groups)
    parts += stride
    parts.append(channels // groups)
    order += [1 + dims, 2 + 2 * dims]
    joined.append(channels)
    x = x.movedim(1, -1).reshape(parts).permute(order).reshape(joined)
    for d in range(dims):
        x = x.narrow(1 + d, first[d], joined[1 + d] - first[d] - last[d])
    return x.contiguous().movedim(-1, 1)


def merge_groups(weight: torch.Tensor, zero_point: torch.Tensor, groups: int, size: int) -> torch.Tensor:
    """The int8 weight (O, I, *kernel) of a grouped convolution with `size` groups in one: (O, size * I, *kernel), zeros between."""
    outputs, inputs = weight.shape[0], weight.shape[1]
    shape, column = list(weight.shape), [1] * weight.dim()
    shape[1], column[0] = size * inputs, -1
    wide = zero_point.to(weight.dtype).reshape(column).expand(shape).clone()
    rows = torch.arange(outputs)
    slots = torch.div(rows, outputs // groups, rounding_mode="floor") % size
    wide[rows.unsqueeze(1), slots.unsqueeze(1) * inputs + torch.arange(inputs)] = weight
    return wide


merge_groups.once = True  # type: ignore[attr-defined]
