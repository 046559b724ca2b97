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


def _pair_peak(weight: Tensor) -> Tensor:
    """Per output channel, the largest same-sign sum over the pairs of taps; `weight` is (O, 1, *kernel)."""
    taps = weight.reshape(weight.shape[0], -1)
    if taps.shape[1] % 2:
        taps = torch.nn.functional.pad(taps, (0, 1))
    pairs = taps.reshape(taps.shape[0], -1, 2)
    return torch.maximum(pairs.clamp(min=0).sum(2), -pairs.clamp(max=0).sum(2)).amax(1)


def safe_weight(weight: Tensor) -> bool:
    """Whether no activation in 0..255 can overflow 16 bits with this int8 depthwise weight (O, 1, *kernel)."""
    return weight.numel() == 0 or bool((_pair_peak(weight.to(torch.int32)) <= LIMIT).all())


def shrink_to_safe(weight: Tensor, scales: Tensor) -> Tensor:
    """The smallest scales, no smaller than `scales`, at which round(weight / scale) is safe.

    weight: float (O, 1, *kernel). scales: (O,), or one element for the whole tensor; same shape and dtype returned.
    At most doubles a symmetric scale: its int8 pairs reach 254. Symmetric weights (zero point 0) are assumed.
    """
    per_tensor = scales.numel() == 1
    values = weight.detach().double().reshape(1 if per_tensor else weight.shape[0], -1, *weight.shape[2:])
    result = scales.detach().double().reshape(-1).clone()
    flat = weight.detach().double().reshape(weight.shape[0], 1, -1)
    for _ in range(64):  # each step removes at least the rounding excess of the worst pair; a few steps suffice
        steps = result.reshape(-1, 1, 1)
        peak = _pair_peak(torch.round(flat / steps).clamp(-128, 127))
        peak = peak.amax().reshape(1) if per_tensor else peak
        if bool((peak <= LIMIT).all()):
            return _rounded_up(result, scales)
        needed = _pair_peak(flat)
        needed = (needed.amax().reshape(1) if per_tensor else needed) / (LIMIT + 0.5)
        grown = torch.maximum(result * (1 + 1 / 512), torch.minimum(needed, result * 2))
        result = torch.where(peak > LIMIT, grown, result)
    raise AssertionError(f"no safe scale for {tuple(values.shape)}")
