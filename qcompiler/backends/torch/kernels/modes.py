"""Ops that take and give floats while their weights are quantized: what the torch kernels can do, and with which range.

Measured against float64 (tests/test_dynamic_kernels.py): the dynamic linear and recurrent kernels are right on every engine.
torch's quantized::conv*d_dynamic are on none: they hand out 8-bit results on the scale of the input, which saturate.
"""

from __future__ import annotations

from torch import fx

from qcompiler.backends.torch.site import VNNI
from qcompiler.config.qconfig import QConfig
from qcompiler.config.qconfig_of_op import dynamic_codes
from qcompiler.ir.types import Mode
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.spec import Family, Op

HALF_ENGINES = ("x86", "fbgemm")  # fbgemm multiplies by float16 weights; others widen them once


def choose(row: Op, asked: Mode) -> tuple[Mode, str] | Obstacle:
    """The mode an op runs in where `asked` is wanted, with why it is another; or why it stays float."""
    if asked is Mode.FOUR_BIT and row.family not in (Family.EMBEDDING, Family.LINEAR):
        return Obstacle("no-kernel", "4-bit weights are for embeddings and linear")
    if asked is not Mode.DYNAMIC:
        return asked, "no kernel takes int8 activations, or has any" if row.family is Family.EMBEDDING else ""
    if row.family is Family.EMBEDDING:
        return Mode.WEIGHT_ONLY, "it has no activations, and its result is float"
    if row.family in (Family.LINEAR, Family.RECURRENT):
        return asked, "torch's int8 kernels for it take floats and quantize them at run time"
    return Mode.WEIGHT_ONLY, "torch has no right dynamic kernel for it, so it computes with floats"


def activation_range(node: fx.Node | None, qconfig: QConfig, engine: str, isa: str) -> tuple[int, int]:
    """The codes that a dynamic kernel rounds to: 0..255, or 0..127 where 16-bit sums could overflow or the user wants it."""
    codes = dynamic_codes(qconfig, node, 8 if isa in VNNI else 7)
    return (0, 255) if engine == "qnnpack" else codes  # sums in 32 bits everywhere, and takes no other range
