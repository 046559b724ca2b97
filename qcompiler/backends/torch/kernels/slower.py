"""Which int8 convolutions and linears take longer than float at their size: looked up in slower.json, a committed table of measurements.

A class of shapes says how a library takes an op: how wide the window is, how few the channels. For each, by instruction set and library,
the table has how long int8 takes against float between two int8 ops, which rounds what it hands on: the least and the most of the sizes
that were timed, and from how many products on a call takes long enough to count. A class is slower where its least is above SLOWER, so no
single size decides. bench/time_slower.py writes the table. Each op is judged alone: what else is float does not matter.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import fx

from qcompiler.backends.torch.kernels import groups as grouped
from qcompiler.backends.torch.site import VNNI, ints
from qcompiler.ir.types import value_of
from qcompiler.ops.spec import Family, Op

TABLE = Path(__file__).with_name("slower.json")
SLOWER = 1.2  # times float's, from which on int8 does not pay: below it is a matter of the machine
FEW = 8  # channels: a lane of 32-bit sums
ROWS = 16


@functools.cache
def table() -> Mapping[str, Any]:
    """[least, most, products] by instruction set, library, op and class."""
    return json.loads(TABLE.read_text(encoding="utf-8"))["times_float"]  # type: ignore[no-any-return]


def of_call(row: Op, node: fx.Node, engine: str, isa: str) -> str | None:
    """What the table says of an op that takes int8 where that is slower than float; None where it is not, or was not measured.

    It is about one sample: a state_dict has to fit a module that was compiled with another batch.
    """
    x, weight = node.args[0], node.args[row.weight] if row.weight is not None else None
    sizes, shape = (value_of(n).shape if isinstance(n, fx.Node) else None for n in (x, weight))
    if sizes is None or shape is None or row.macs is None or row.family not in (Family.CONVOLUTION, Family.LINEAR):
        return None
    if row.family is Family.LINEAR:
        batch, found = (1 if len(sizes) == 1 else sizes[0]), class_of_linear(shape, math.prod(sizes[1:-1]))
    else:
        batch, settings = (1 if len(sizes) < len(shape) else sizes[0]), dict[str, Any](node.kwargs)
        found = class_of_conv(shape, settings.get("groups", 1), ints(settings.get("dilation", 1), len(shape) - 2))
    ratio = times_float(row.name, found, row.macs(node) // max(batch, 1), engine, isa)
    if ratio is None:
        return None
    return f"int8 takes {ratio[0]:.1f} to {ratio[1]:.1f} times as long as float on {engine}, by measurement ({found})"


def library(engine: str, isa: str) -> str:
    """What the table calls an engine: without VNNI, x86 packs everything with fbgemm."""
    return "fbgemm" if engine == "x86" and isa not in VNNI else engine


def times_float(op: str, found: str | None, macs: int, engine: str, isa: str) -> tuple[float, float] | None:
    """The least and the most that int8 takes against float in a class, where that is slower; None where it is not, or unknown."""
    width = "avx512_vnni" if isa in VNNI else isa
    least, most, products = table().get(width, {}).get(library(engine, isa), {}).get(op, {}).get(found, (0.0, 0.0, 0))
    return (least, most) if least > SLOWER and macs >= products else None


def class_of_linear(weight: Sequence[int], rows: int) -> str | None:
    """The class of a linear with the weight (O, I)."""
    return f"features in {_upto(weight[1], FEW)}, out {_upto(weight[0], FEW)}, rows {_upto(rows, 1, ROWS)}"


def class_of_conv(weight: Sequence[int], groups: int, dilation: Sequence[int]) -> str | None:
    """The class of a convolution with the weight (O, I/g, *kernel); None for one that was never slower."""
    outputs, inputs, *kernel = weight
    if groups > 1 and any(d > 1 for d in dilation):
        return None
    if groups > 1 and inputs == 1:
        return f"depthwise, {_window(kernel)}, {'many' if groups > grouped.ONEDNN_GROUPS else 'few'} channels"
    if groups > 1:
        whole = ", no whole vectors" if grouped.overruns((*weight,), groups) else ""
        return f"groups of {_upto(inputs, 2, 3, 4, 8)} channels{whole}, {_taps(kernel)}"
    if min(inputs, outputs) > FEW:
        return None
    return f"channels in {_upto(inputs, 1, 4, FEW)}, out {_upto(outputs, FEW, 16, 32)}, {_taps(kernel)}"


def _window(kernel: Sequence[int]) -> str:
    side = max(kernel)
    if min(kernel) == 1 and len(kernel) > 1:
        return f"line of {_upto(side, 3, 7)}"
    return "window of 2" if side == 2 else f"window of {_upto(side, 7, 10)}"


def _taps(kernel: Sequence[int]) -> str:
    return f"taps {_upto(math.prod(kernel), 1, 9)}"


def _upto(count: int, *ends: int) -> str:
    """The range between two of the ends that a number lies in, which it may reach."""
    low, high = next(((a + 1, b) for a, b in zip((0, *ends), ends, strict=False) if count <= b), (ends[-1] + 1, None))
    return str(low) if low == high else f"{low} and more" if high is None else f"{low} to {high}"
