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


def larger_window(weight: torch.Tensor, zero_point: torch.Tensor, outputs: int, window: int) -> torch.Tensor:
    """The int8 weight (O, I, H, W), or (O, I, W), in the middle of one (outputs, I, window, window) of real zeros."""
    weight = weight.unsqueeze(2) if weight.dim() == 3 else weight
    shape, column = [weight.shape[0], weight.shape[1], window, window], [-1, 1, 1, 1]
    wide = zero_point.to(weight.dtype).reshape(column).expand(shape).clone()
    rows, columns = (window - weight.shape[2]) // 2, (window - weight.shape[3]) // 2
    wide.narrow(2, rows, weight.shape[2]).narrow(3, columns, weight.shape[3]).copy_(weight)
    more = torch.zeros([outputs - weight.shape[0], weight.shape[1], window, window], dtype=weight.dtype)
    return torch.cat([wide, more])


larger_window.once = True  # type: ignore[attr-defined]


def more_channels(x: torch.Tensor, count: int, value: float) -> torch.Tensor:
    """A value for each channel, and `value` for others up to `count`."""
    return torch.cat([x, torch.full([count - x.shape[0]], value, dtype=x.dtype)])


more_channels.once = True  # type: ignore[attr-defined]


@torch.jit.script_if_tracing  # type: ignore[untyped-decorator]
def split_dilation(x: torch.Tensor, channels: int, front: list[int], back: list[int], dilation: list[int]) -> torch.Tensor:
    """(N, C, H, W) with real zeros around it, up to `channels`, and each place of the dilation as an image: (N * places, channels, ...)."""
    d0, d1 = dilation[0], dilation[1]
    rows = (x.size(2) + front[0] + back[0] + d0 - 1) // d0
    columns = (x.size(3) + front[1] + back[1] + d1 - 1) // d1
    pad = [0, channels - x.size(1), front[1], columns * d1 - x.size(3) - front[1], front[0], rows * d0 - x.size(2) - front[0]]
    y = x.permute(0, 2, 3, 1)
    if channels != x.size(1) or rows * d0 != x.size(2) or columns * d1 != x.size(3):
        y = torch._make_per_tensor_quantized_tensor(
            torch.constant_pad_nd(y.int_repr(), pad, x.q_zero_point()), x.q_scale(), x.q_zero_point()
        )
    y = y.reshape(x.size(0), rows, d0, columns, d1, channels).permute(0, 2, 4, 1, 3, 5)
    return y.reshape(x.size(0) * d0 * d1, rows, columns, channels).permute(0, 3, 1, 2)


@torch.jit.script_if_tracing  # type: ignore[untyped-decorator]
def join_dilation(
    y: torch.Tensor,
    x: torch.Tensor,
    outputs: int,
    dilation: list[int],
    first: list[int],
    stride: list[int],
    kept: list[int],
    span: list[int],
) -> torch.Tensor:
    """Of a convolution's results on `split_dilation(x, ...)` those that are meant: (N, outputs, (H + span) // stride + 1, ...), where
    the kernel had the stride `stride`, of whose results every `kept`-th counts. Dense with channels last."""
    d0, d1 = dilation[0], dilation[1]
    rows = (x.size(2) + span[0]) // (stride[0] * kept[0])  # one less than there are
    columns = (x.size(3) + span[1]) // (stride[1] * kept[1])
    y = y.permute(0, 2, 3, 1)
    height, width = y.size(1) * d0, y.size(2) * d1
    y = y.reshape(x.size(0), d0, d1, y.size(1), y.size(2), y.size(3)).permute(0, 3, 1, 4, 2, 5).reshape(x.size(0), height, width, y.size(3))
    y = y[:, first[0] : first[0] + rows * kept[0] + 1 : kept[0], first[1] : first[1] + columns * kept[1] + 1 : kept[1], :outputs]
    return y.contiguous().permute(0, 3, 1, 2)
