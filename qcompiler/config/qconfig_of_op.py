"""What a qconfig means for one op: the observer of its weight, the axis of its scales, and the codes of what is rounded at run time."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qcompiler.config.qconfig import QConfig, mode_of
from qcompiler.errors import ConfigError
from qcompiler.ir.types import Mode
from qcompiler.ir.verify import where
from qcompiler.observers import PerChannelMinMaxObserver, default_float_qparams_observer
from qcompiler.ops.spec import CONVOLUTIONS, Op


def weight_observer(row: Op, qconfig: QConfig) -> Any:
    """The observer of a weight. Where one scale for all costs accuracy and saves nothing, that is not what the qconfig means: tables
    have one a row, and so has a convolution under a dynamic qconfig (its weight is widened before it is used) one a channel.
    """
    observer = qconfig.weight()
    if getattr(observer, "is_per_channel", False) or observer.dtype.is_floating_point:
        return observer
    if row.reads_table:
        return default_float_qparams_observer()
    if row.settled.family in CONVOLUTIONS and observer.dtype is torch.int8 and mode_of(qconfig) is Mode.DYNAMIC:
        return PerChannelMinMaxObserver(dtype=torch.int8, qscheme=torch.per_channel_symmetric, quant_min=observer.quant_min,
                                        quant_max=observer.quant_max)  # fmt: skip
    return observer


def channel_axis(row: Op, qconfig: QConfig) -> int | None:
    """The axis of per-channel weight scales, None where the qconfig wants one scale."""
    return row.weight_axis if weight_observer(row, qconfig).is_per_channel else None


def weight_codes(row: Op, qconfig: QConfig) -> tuple[int, int]:
    """The smallest and the largest int8 code of a weight."""
    observer = weight_observer(row, qconfig)
    low, high = getattr(observer, "quant_min", None), getattr(observer, "quant_max", None)
    if low is None or high is None:
        return -128, 127
    middle = 0 if observer.dtype is torch.int8 else (low + high + 1) // 2  # kernels take uint8 codes less this
    return low - middle, high - middle


def dynamic_codes(qconfig: QConfig, node: fx.Node | None, bits: int = 8) -> tuple[int, int]:
    """The codes that activations are rounded to at run time: 0..255, or 0..127 where the user wants it or `bits` is 7."""
    observer = qconfig.activation()
    reduce, low, high = (getattr(observer, name, None) for name in ("reduce_range", "quant_min", "quant_max"))
    span = 255 if low is None or high is None or not getattr(observer, "is_dynamic", False) else high - low
    if span not in (255, 127):
        place = where(node) if node is not None else None
        raise ConfigError(f"dynamic kernels round activations to 255 or 127 steps, not {span}", code="quant-range", where=place,
                          hint="leave quant_min and quant_max of the activation observer out, or set reduce_range=True")  # fmt: skip
    automatic = reduce is None and span == 255
    return (0, 127) if span == 127 or reduce or (automatic and bits == 7) else (0, 255)
