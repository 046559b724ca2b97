"""What a person should know of an observed range: that there is none, or that it is too small for the observer's smallest scale."""

from __future__ import annotations

import torch

from qcompiler.observers.affine import Rule
from qcompiler.observers.base import UniformQuantizationObserverBase

LARGEST = torch.finfo(torch.float32).max / 2**31
WIDE_RANGE = "wide-range"  # the code of a remark
WIDE = "its observer gives 8 bits whatever is asked, and a kernel that takes them adds in 16 bits here: large sums are cut off"
SHOWN = 8  # channels that are listed


def uniform(observer: object) -> UniformQuantizationObserverBase | None:
    """The observer of a range behind an observer or a fake-quantize module."""
    inner = getattr(observer, "activation_post_process", observer)
    return inner if isinstance(inner, UniformQuantizationObserverBase) and inner.observed else None


def is_constant(observer: object) -> bool:
    """Whether all values that were observed are the same number."""
    inner = uniform(observer)
    return inner is not None and bool((inner.min_val == inner.max_val).all())


def is_wide(observer: object) -> bool:
    """Whether it gives codes of 8 bits."""
    low, high = (getattr(observer, name, None) for name in ("quant_min", "quant_max"))
    return low is not None and high is not None and high - low > 127


def steps_used(observer: UniformQuantizationObserverBase) -> torch.Tensor:
    """For each range, how many steps of the scale it takes; fewer than there are where the scale was raised to eps."""
    low, high = observer.min_val.clamp(max=0).double().reshape(-1), observer.max_val.clamp(min=0).double().reshape(-1)
    rule: Rule = observer._rule()
    width = 2 * torch.maximum(-low, high) if rule.symmetric else high - low
    return width / float(observer.eps)


def floored(observer: object) -> str | None:
    """A sentence where eps leaves a range with fewer than half of its steps."""
    inner = uniform(observer)
    if inner is None:
        return None
    steps, levels = steps_used(inner), inner.quant_max - inner.quant_min
    few = (steps > 0) & (steps < levels / 2)
    if not bool(few.any()):
        return None
    of = f"{_listed(few)}: " if inner.is_per_channel else ""
    number = int(steps[few].min().item())
    return f"{of}its range takes {number} of {levels} steps: the scale is eps, {float(inner.eps):.3g}; give the observer a smaller eps"


def overflows(observer: object) -> str | None:
    """A sentence where a kernel's 32-bit sums, times the scale, could leave float32."""
    inner = uniform(observer)
    if inner is None:
        return None
    largest = float(inner.calculate_qparams()[0].max())
    return f"its scale is {largest:.3g}: sums of a kernel may overflow float32" if largest > LARGEST else None


def empty_channels(observer: object) -> str | None:
    """A sentence where channels hold nothing but zeros."""
    inner = uniform(observer)
    if inner is None or not inner.is_per_channel:
        return None
    empty = steps_used(inner) == 0
    return f"{_listed(empty)}: nothing but zeros; the scale is eps, the result exact" if bool(empty.any()) else None


def _listed(where: torch.Tensor) -> str:
    found = where.nonzero().flatten().tolist()
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"channel {', '.join(map(str, found[:SHOWN]))}{more}"
