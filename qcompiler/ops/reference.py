"""Quantize and dequantize on plain tensors: the arithmetic of the QUANTIZED stage, and of every back end's contract.

q = clamp(round_half_even(x / scale) + zero_point, quant_min, quant_max);  x = (q - zero_point) * scale.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

PIECE = 2**18  # numbers that are converted at once: as float64 they take eight times the room of their codes


def quantize(x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: torch.dtype) -> Tensor:
    """Float tensor of any shape to integers of `dtype`, per tensor."""
    # multiplies by the float32 inverse, as torch's kernels do: dividing rounds some ties to the other side
    inverse = torch.tensor(1.0 / scale, dtype=torch.float32, device=x.device)
    if not _goes_in_pieces(x):
        return _codes(x, inverse, zero_point, quant_min, quant_max).to(dtype)
    made = torch.empty_like(x, dtype=dtype)
    for part, own in zip(x.view(-1).split(PIECE), made.view(-1).split(PIECE), strict=True):
        own.copy_(_codes(part, inverse, zero_point, quant_min, quant_max))
    return made


def _codes(x: Tensor, inverse: Tensor, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    return (x * inverse).round_().add_(zero_point).clamp_(quant_min, quant_max)  # in place: fresh memory takes most of the time


def _goes_in_pieces(x: Tensor) -> bool:
    """Whether a value is large, and nobody records what is done with it, or stands in for it."""
    if type(x) is not Tensor or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return x.numel() > PIECE and x.is_contiguous() and not x.requires_grad


def dequantize(q: Tensor, scale: float, zero_point: int) -> Tensor:
    """Integers to float32, per tensor."""
    return q.to(torch.float32, copy=True).sub_(zero_point).mul_(scale)


# The verifier checks such calls against the qparams that are noted in the graph.
quantize.converts = "quantize"  # type: ignore[attr-defined]
dequantize.converts = "dequantize"  # type: ignore[attr-defined]


def per_axis(values: Tensor, axis: int, dims: int) -> Tensor:
    """Views a vector so that it broadcasts along `axis` of a tensor with `dims` dimensions."""
    return values.reshape([-1 if i == axis else 1 for i in range(dims)])


def quantize_weight(
    w: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, quant_min: int, quant_max: int, dtype: torch.dtype = torch.int8
) -> Tensor:
    """Float weight to int8 (or uint8); `scale` and `zero_point` are vectors along `axis`, or one-element tensors where axis is None.

    A zero point that is no integer (embeddings) is added before rounding.
    """
    s, z = (scale, zero_point) if axis is None else (per_axis(scale, axis, w.dim()), per_axis(zero_point, axis, w.dim()))
    if z.is_floating_point():
        return _in_pieces(
            lambda x, s, z: (x.double() / s).add_(z).round_().clamp_(quant_min, quant_max), w, (s.double(), z.double()), dtype
        )
    # as in training: the largest value of a symmetric range is a tie, 127.5, which the last bit decides
    s = s.float().reciprocal()
    return _in_pieces(lambda x, s, z: (x.float() * s).round_().add_(z).clamp_(quant_min, quant_max), w, (s, z), dtype)


def dequantize_weight(w: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    """int8 or uint8 weight to float32; see quantize_weight."""
    s, z = (scale, zero_point) if axis is None else (per_axis(scale, axis, w.dim()), per_axis(zero_point, axis, w.dim()))
    return _in_pieces(lambda x, s, z: (x.to(torch.float64) - z).mul_(s), w, (s, z), torch.float32)


def _in_pieces(convert: Callable[[Tensor, Tensor, Tensor], Tensor], w: Tensor, steps: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """What `convert` makes of a weight and its steps, number by number, in a dtype. A large one goes some rows at a time."""
    if w.numel() <= PIECE or type(w) not in (Tensor, nn.Parameter) or torch.compiler.is_compiling():
        return convert(w, *steps).to(dtype)
    made, rows = torch.empty_like(w, dtype=dtype), max(1, PIECE * len(w) // w.numel())
    for at in range(0, len(w), rows):
        part = slice(at, at + rows)
        made[part].copy_(convert(w[part], *(x[part] if x.dim() == w.dim() and len(x) == len(w) else x for x in steps)))
    return made


SMALLEST_STEP = float(torch.tensor(6.1e-5))  # of the qparams that dynamic kernels choose: SMALL_SCALE_THRESHOLD of quant_utils.h


def dynamic_quantize_dequantize(x: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """Rounds x (any float dtype) to quant_max - quant_min steps of its own range, which is widened to contain 0.

    As torch's dynamic kernels choose them: a step is at least SMALLEST_STEP, and the zero point is rounded from the end of the range that
    loses less.
    """
    if x.numel() == 0:
        return x
    ends = x.detach().aminmax()
    low, high = min(float(ends.min), 0.0), max(float(ends.max), 0.0)
    scale = (high - low) / (quant_max - quant_min) or 0.1
    if scale < SMALLEST_STEP:
        low, high, scale = low * SMALLEST_STEP / scale, high * SMALLEST_STEP / scale, SMALLEST_STEP
    from_low, from_high = quant_min - low / scale, quant_max - high / scale
    zero_point = from_low if abs(quant_min) + abs(low / scale) < abs(quant_max) + abs(high / scale) else from_high
    zero_point = round(min(max(zero_point, quant_min), quant_max))
    # in float32 as the kernels, so that ties fall on the same side
    codes = torch.round(x.to(torch.float32) * torch.tensor(1.0 / scale, dtype=torch.float32, device=x.device))
    return ((torch.clamp(codes + zero_point, quant_min, quant_max) - zero_point).to(x.dtype)) * scale


def choose(condition: bool, yes: Tensor, no: Tensor) -> Tensor:
    """The one or the other tensor, whatever their shapes are: what a variable holds behind an `if`."""
    return yes if condition else no


def own_copy(x: Tensor) -> Tensor:
    """A copy for code that changes what it is given. No pass takes it away, as it does a `clone`. Can be scripted."""
    return x.clone()


def lay_out(x: Tensor, order: list[int]) -> Tensor:
    """A tensor with its elements side by side in memory, its dimensions in this order from the outermost to the innermost: what code that
    asks is given. Can be scripted."""
    back = [order.index(dim) for dim in range(len(order))]
    return x.permute(order).contiguous().permute(back)


def widen(w: Tensor) -> Tensor:
    """A float16 weight as float32."""
    return w.to(torch.float32)


def pack_4bit(codes: Tensor) -> Tensor:
    """uint8 codes 0..15 (R, C), two in a byte: (R, ceil(C / 2)), the even columns in the low bits."""
    even = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2))
    return even[:, ::2] | (even[:, 1::2] << 4)


def unpack_4bit(packed: Tensor, columns: int) -> Tensor:
    """The codes that pack_4bit took."""
    return torch.stack([packed & 15, packed >> 4], dim=2).flatten(1)[:, :columns]
