"""Functions that lowered graphs call where no operator of torch does it in one.

Each is self-contained and scriptable: code generation copies its source into exported files, so it names nothing but
`torch`. A function with `once = True` depends on constants alone and runs when a module is built or loaded.
"""
# no `from __future__ import annotations`: torch.jit reads the annotations themselves

import torch
from torch._jit_internal import is_scripting


def leading_of(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """y with the leading dimensions of x, if it lost them."""
    return y if y.dim() == x.dim() else y.reshape(list(x.shape[:-1]) + [y.size(-1)])  # noqa: RUF005 TorchScript has no such star


def as_pixels(x: torch.Tensor) -> torch.Tensor:
    """The rows of (..., C) as the pixels of (1, C, 1, rows), channels last; no rows as no images, which kernels take."""
    if x.numel() == 0:
        return x.reshape([-1, 1, 1, x.size(-1)]).permute(0, 3, 1, 2)
    return x.reshape([1, 1, -1, x.size(-1)]).permute(0, 3, 1, 2)


def as_rows(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A convolution's result on `as_pixels(x)` with the leading dimensions of x."""
    return y.permute(0, 2, 3, 1).reshape(list(x.shape[:-1]) + [y.size(1)])  # noqa: RUF005 TorchScript has no such star


def linear_leaky_relu_onednn(
    x: torch.Tensor,
    pack: torch.classes.quantized.LinearPackedParamsBase,  # type: ignore[name-defined]
    negative_slope: float,
    scale: float,
    zero_point: int,
) -> torch.Tensor:
    """linear and leaky_relu in one kernel. The op looks at the current engine, whatever engine made the pack."""
    if not torch.jit.is_scripting() and torch.backends.quantized.engine != "onednn":  # type: ignore[attr-defined]
        raise RuntimeError("this kernel was packed for onednn and runs only where torch.backends.quantized.engine is onednn")
    return torch.ops.quantized.linear_leaky_relu(x, pack, scale, zero_point, negative_slope)  # type: ignore[no-any-return]


def linear_tanh_onednn(
    x: torch.Tensor,
    pack: torch.classes.quantized.LinearPackedParamsBase,  # type: ignore[name-defined]
    scale: float,
    zero_point: int,
) -> torch.Tensor:
    """linear and tanh in one kernel. The op looks at the current engine, whatever engine made the pack."""
    if not torch.jit.is_scripting() and torch.backends.quantized.engine != "onednn":  # type: ignore[attr-defined]
        raise RuntimeError("this kernel was packed for onednn and runs only where torch.backends.quantized.engine is onednn")
    return torch.ops.quantized.linear_tanh(x, pack, scale, zero_point)  # type: ignore[no-any-return]


def conv2d_add_onednn(
    x: torch.Tensor,
    other: torch.Tensor,
    pack: torch.classes.quantized.Conv2dPackedParamsBase,  # type: ignore[name-defined]
    channels: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    scale: float,
    zero_point: int,
    into: bool = False,
) -> torch.Tensor:
    """conv2d and a sum in one kernel. It writes into `other` and believes its shape: so it gets a copy of the right one.

    `into`: nothing else uses `other`; where it has the result's shape and layout, no copy is made. The op looks at the current
    engine, whatever engine made the pack.
    """
    if not torch.jit.is_scripting() and torch.backends.quantized.engine != "onednn":  # type: ignore[attr-defined]
        raise RuntimeError("this kernel was packed for onednn and runs only where torch.backends.quantized.engine is onednn")
    shape = [x.size(0), channels]
    for i in range(2):
        shape.append((x.size(2 + i) + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1)
    if into and list(other.shape) == shape and other.is_contiguous(memory_format=torch.channels_last):
        return torch.ops.quantized.conv2d_add(x, other, pack, scale, zero_point)  # type: ignore[no-any-return]
    summand = torch.empty_quantized([shape[0], shape[2], shape[3], shape[1]], other).permute(0, 3, 1, 2)  # channels_last
    summand.copy_(other.expand(shape))  # an op that writes: TorchScript makes one of two equal clones
    return torch.ops.quantized.conv2d_add(x, summand, pack, scale, zero_point)  # type: ignore[no-any-return]


conv2d_add_onednn.writes = 1  # type: ignore[attr-defined]  # the argument that it may write into


def lookup(x: torch.Tensor, table: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """Any function of single values: uint8 `table` (256,) from the input's codes to the output's. Keeps the layout.

    The codes are looked up in the order of their memory (int_repr makes dense memory of its own): 196 us for 200,704 values, 518
    where the table is indexed with their shape (one thread).
    """
    codes = x.int_repr()
    found = torch.index_select(table, 0, torch.as_strided(codes, [codes.numel()], [1]).long())
    return torch._make_per_tensor_quantized_tensor(torch.as_strided(found, codes.size(), codes.stride()), scale, zero_point)


def all_codes(x: torch.Tensor) -> torch.Tensor:
    """The 256 values that a quint8 tensor of x's qparams may hold."""
    return torch._make_per_tensor_quantized_tensor(torch.arange(256, dtype=torch.uint8), x.q_scale(), x.q_zero_point())


def lookup_values(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """`lookup` in the quint8 results of a function of `all_codes(x)`, on their qparams."""
    codes = x.int_repr()
    found = torch.index_select(table.int_repr(), 0, torch.as_strided(codes, [codes.numel()], [1]).long())
    found = torch.as_strided(found, codes.size(), codes.stride())
    return torch._make_per_tensor_quantized_tensor(found, table.q_scale(), table.q_zero_point())


def as_quantized(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """A tensor from outside (float, or quantized with qparams of its own) on the scale that the program was compiled for."""
    if x.is_quantized:
        if abs(x.q_scale() - scale) <= 1e-6 * scale and x.q_zero_point() == zero_point and x.dtype == torch.quint8:
            return x
        x = x.dequantize()
    return torch.quantize_per_tensor(x, scale, zero_point, torch.quint8)


def as_quint8(x: torch.Tensor) -> torch.Tensor:
    """A qint8 tensor, per tensor, as a quint8 one of the same values: code and zero point are 128 higher. Others as they are."""
    if x.dtype != torch.qint8:
        return x
    if not is_scripting():  # noqa: SIM102  (TorchScript leaves out a branch, not the half of a test)
        if x.qscheme() != torch.per_tensor_affine:  # TorchScript cannot compare these
            return x
    codes = (x.int_repr().to(torch.int16) + 128).to(torch.uint8)
    return torch._make_per_tensor_quantized_tensor(codes, x.q_scale(), x.q_zero_point() + 128)


def quantize_along(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """torch.quantize_per_tensor in the order of memory where the channels of (N, C, ...) lie innermost, as in transposed tokens.

    The result has them there, too, as convolutions want it. torch goes element by element through three dimensions, and through four
    where the batch is 1: 1.9 ms for 128 x 64 x 64 values, so 0.1.
    """
    if x.dim() < 3 or x.is_contiguous() or not x.movedim(1, -1).is_contiguous():
        return torch.quantize_per_tensor(x, scale, zero_point, torch.quint8)
    return torch.quantize_per_tensor(x.movedim(1, -1), scale, zero_point, torch.quint8).movedim(-1, 1)


quantize_along.quantizes = True  # type: ignore[attr-defined]


def quantize_as_images(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """torch.quantize_per_tensor with channels innermost, as int8 convolutions hand their results on.

    A sum of two layouts goes element by element: 16 x 112 x 112 values take 1.1 ms instead of 0.05.
    """
    y = torch.quantize_per_tensor(x, scale, zero_point, torch.quint8)
    return y.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


quantize_as_images.quantizes = True  # type: ignore[attr-defined]


def amax(x: torch.Tensor, dim: list[int], keepdim: bool, scale: float, zero_point: int) -> torch.Tensor:
    """The largest values along `dim` (all of them for []): those of the codes."""
    return torch._make_per_tensor_quantized_tensor(torch.amax(x.int_repr(), dim, keepdim), scale, zero_point)


def amin(x: torch.Tensor, dim: list[int], keepdim: bool, scale: float, zero_point: int) -> torch.Tensor:
    """The smallest values along `dim` (all of them for []): those of the codes."""
    return torch._make_per_tensor_quantized_tensor(torch.amin(x.int_repr(), dim, keepdim), scale, zero_point)


def gather(x: torch.Tensor, dim: int, index: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """torch.gather of the codes."""
    return torch._make_per_tensor_quantized_tensor(torch.gather(x.int_repr(), dim, index), scale, zero_point)


@torch.jit.script_if_tracing  # type: ignore[untyped-decorator]
def instance_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, scale: float, zero_point: int
) -> torch.Tensor:
    """Group norm with a channel in each group: as fast as quantized::instance_norm, which raises on an empty batch. See fit.group_norm."""
    few = x.dim() > 3 and x.numel() < 2 * x.size(0) * x.size(0) * x.size(1)
    y = torch.ops.quantized.group_norm(x.flatten(2) if few else x, x.size(1), weight, bias, eps, scale, zero_point)
    return y.reshape(x.shape) if few else y  # type: ignore[no-any-return]


def stack(tensors: list[torch.Tensor], dim: int, scale: float, zero_point: int) -> torch.Tensor:
    """torch.stack of quint8 tensors with their own scales, requantized to one."""
    return torch.ops.quantized.cat([torch.unsqueeze(t, dim) for t in tensors], dim, scale, zero_point)  # type: ignore[no-any-return]


def quantize_constant(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """A parameter used as an activation (a position embedding, say), quantized once."""
    return torch.quantize_per_tensor(x, scale, zero_point, torch.quint8)


quantize_constant.once = True  # type: ignore[attr-defined]


def of_width(x: torch.Tensor, width: int) -> torch.Tensor:
    """The tensor, whose rows have this width: qnnpack's dynamic linear reads what lies behind shorter ones."""
    if not torch.jit.is_tracing() and x.size(-1) != width:  # type: ignore[attr-defined]
        raise RuntimeError("the rows of a linear's input must have its number of features")
    return x
