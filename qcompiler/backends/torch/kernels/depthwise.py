"""When fbgemm's depthwise kernel cannot overflow, and how to scale weights so that it cannot.

The kernel multiplies uint8 activations by int8 weights and adds products in pairs with vpmaddubsw, which saturates at
16 bits; pairs are then added in 32 bits. Which taps pair up was found by experiment (measure.py, `tap_pairs`): with the
kernel window flattened row by row, tap 2i with tap 2i + 1, the last of an odd count alone; for 3x3, 5x5, 7x7, 3x3x3,
any channel count, one or two outputs per channel.

Activations are at most 255 whatever their zero point, so a pair (a, b) is safe if both
    255 * (max(a, 0) + max(b, 0)) <= 32767   and   255 * (min(a, 0) + min(b, 0)) >= -32768,
that is: positive parts add up to at most 128, and so do negative parts.
"""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 128  # floor(32767 / 255) = floor(32768 / 255) = 128


def _pairs(weight: Tensor) -> Tensor:
    """(2, pairs, channels) of a weight (O, 1, *kernel): the taps that pair up. Channels stand last, so that each op is one long loop."""
    taps = weight.reshape(weight.shape[0], -1)
    if taps.shape[1] % 2:
        taps = torch.nn.functional.pad(taps, (0, 1))
    return taps.reshape(taps.shape[0], -1, 2).permute(2, 1, 0).contiguous()


def _peak(pairs: Tensor) -> Tensor:
    """Per output channel, the largest same-sign sum over the pairs of taps."""
    above, below = pairs.clamp(min=0), pairs.clamp(max=0)
    return torch.maximum((above[0] + above[1]).amax(0), -(below[0] + below[1]).amin(0))


def safe_weight(weight: Tensor) -> bool:
    """Whether no activation in 0..255 can overflow 16 bits with this int8 depthwise weight (O, 1, *kernel)."""
    return weight.numel() == 0 or bool(safe_channels(weight).all())


def safe_channels(codes: Tensor) -> Tensor:
    """(O,): of each channel of the int8 depthwise weight, whether no activation can overflow 16 bits."""
    return _peak(_pairs(codes).to(torch.int16)) <= LIMIT


def least_safe_scale(weight: Tensor) -> Tensor:
    """Scales (O,) from which on the symmetric int8 weight is safe, in one step, for weights that training moves all the time.

    With s = (|a| + |b|) / 127 over the pairs, a / s + b / s is at most 127, and rounding adds at most a half to each: 128. That
    is at most 1 % above the smallest scale, which shrink_to_safe finds.
    """
    return _peak(_pairs(weight.detach())) / (LIMIT - 1)


def shrink_to_safe(weight: Tensor, scales: Tensor) -> Tensor:
    """The smallest scales, none smaller than `scales`, at which the symmetric int8 weight is safe.

    weight: float (O, 1, *kernel). scales: (O,), or one element for the whole tensor; same shape and dtype returned.
    Safe channels keep their scale bit for bit. Peaks do not grow with the scale, so bisection finds the least one; the
    margin of 1e-6 covers quantizers that round in float32.
    """
    pairs, old = _pairs(weight.detach()), scales.detach().double().reshape(-1)
    by_channel = old.numel() == len(weight)

    def safe(taps: Tensor, steps: Tensor) -> Tensor:
        peak = _peak((taps * steps.float().reciprocal()).round_().clamp_(-128, 127))  # the arithmetic of quantize_weight
        return (peak if by_channel else peak.amax().reshape(1)) <= LIMIT

    small = ~safe(pairs.float(), old)
    if not bool(small.any()):
        return scales
    pairs, low = (pairs[..., small], old[small]) if by_channel else (pairs, old)
    largest = pairs.double().abs().amax((0, 1))
    high = torch.maximum(low, (largest if by_channel else largest.amax().reshape(1)) / 63.5)  # there, no tap exceeds 64 steps
    taps = pairs.float()
    for _ in range(40):  # halves the interval each time: 2**-40 is below float32's resolution
        middle = (low + high) / 2
        ok = safe(taps, middle)
        low, high = torch.where(ok, low, middle), torch.where(ok, middle, high)
    return old.masked_scatter(small, high * (1 + 1e-6)).reshape(scales.shape).to(scales.dtype)


def safe_qparams(weight: Tensor, scale: Tensor, zero_point: Tensor, quant_max: int) -> tuple[Tensor, Tensor]:
    """(scale, zero_point) at which the int8 weight, which need not be symmetric, is safe: the proof is about codes around 0.

    So a weight with zero points becomes a symmetric one: a code of 127 that stands for 0 adds up as any other. weight: float
    (O, 1, *kernel). scale, zero_point: (O,), or one element.
    """
    if bool((zero_point != 0).any()):
        taps = weight.detach().abs().reshape(weight.shape[0], -1)
        peaks = taps.amax(1) if scale.numel() > 1 else taps.amax().reshape(1)
        scale = (peaks.to(scale.dtype) / quant_max).reshape(scale.shape).clamp(min=torch.finfo(torch.float32).eps)
        zero_point = torch.zeros_like(zero_point)
    return shrink_to_safe(weight, scale), zero_point
