"""Ops that take and give floats while their weights are quantized: what the torch kernels can do, and with which range.

Measured against float64 (tests/test_dynamic_kernels.py): the dynamic linear and recurrent kernels are right on every engine.
torch's quantized::conv*d_dynamic are on none: they hand out 8-bit results on the scale of the input, which saturate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qcompiler.backends.torch.site import VNNI
from qcompiler.errors import ConfigError
from qcompiler.ir.types import Mode
from qcompiler.ir.verify import where
from qcompiler.observers import PerChannelMinMaxObserver, default_float_qparams_observer
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.spec import Op
from qcompiler.qconfig import mode_of

RECURRENT = ("lstm", "gru", "lstm_packed", "gru_packed", "lstm_cell", "gru_cell", "rnn_cell")
EMBEDDINGS = ("embedding", "embedding_bag")
DYNAMIC = ("linear", *RECURRENT)
HALF_ENGINES = ("x86", "fbgemm")  # fbgemm multiplies by float16 weights; others widen them once


def choose(row: Op, asked: Mode) -> tuple[Mode, str] | Obstacle:
    """The mode an op runs in where `asked` is wanted, with why it is another; or why it stays float."""
    if asked is Mode.FOUR_BIT and row.name not in (*EMBEDDINGS, "linear"):
        return Obstacle("no-kernel", "4-bit weights are for embeddings and linear")
    if asked is not Mode.DYNAMIC:
        return asked, "no kernel takes int8 activations, or has any" if row.name in EMBEDDINGS else ""
    if row.name in EMBEDDINGS:
        return Mode.WEIGHT_ONLY, "it has no activations, and its result is float"
    if row.name in DYNAMIC:
        return asked, "torch's int8 kernels for it take floats and quantize them at run time"
    return Mode.WEIGHT_ONLY, "torch has no right dynamic kernel for it, so it computes with floats"


def activation_range(node: fx.Node | None, qconfig: Any, engine: str, isa: str) -> tuple[int, int]:
    """The steps that a dynamic kernel rounds to: 0..255, or 0..127 where 16-bit sums could overflow or the user wants it."""
    observer = qconfig.activation()
    reduce, low, high = (getattr(observer, name, None) for name in ("reduce_range", "quant_min", "quant_max"))
    span = 255 if low is None or high is None or not getattr(observer, "is_dynamic", False) else high - low
    if span not in (255, 127):
        place = where(node) if node is not None else None
        raise ConfigError(f"dynamic kernels round activations to 255 or 127 steps, not {span}", code="quant-range", where=place,
                          hint="leave quant_min and quant_max of the activation observer out, or set reduce_range=True")  # fmt: skip
    if engine == "qnnpack":  # sums in 32 bits everywhere, and takes no other range
        return 0, 255
    automatic = reduce is None and span == 255
    return (0, 127) if span == 127 or reduce or (automatic and isa not in VNNI) else (0, 255)


def weight_observer(row: Op, qconfig: Any) -> Any:
    """The observer of a weight. Where one scale for all costs accuracy and saves nothing, that is not what the qconfig means: tables
    have one a row, and so has a convolution under a dynamic qconfig (its weight is widened before it is used) one a channel.
    """
    observer = qconfig.weight()
    if getattr(observer, "is_per_channel", False) or observer.dtype.is_floating_point:
        return observer
    if row.name in EMBEDDINGS:
        return default_float_qparams_observer()
    if row.name.startswith("conv") and observer.dtype is torch.int8 and mode_of(qconfig) is Mode.DYNAMIC:
        return PerChannelMinMaxObserver(dtype=torch.int8, qscheme=torch.per_channel_symmetric, quant_min=observer.quant_min,
                                        quant_max=observer.quant_max)  # fmt: skip
    return observer
