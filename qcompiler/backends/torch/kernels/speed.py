"""Which of several correct kernels is the fastest: looked up in speed.json, a committed table of measurements, never timed at compile.

The table holds microseconds by vector width, op, shape class and kernel; time_kernels.py writes it. The kernel table's order
of preference stands where nothing was measured, and among kernels that are about equally fast.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.ir.types import value_of

if TYPE_CHECKING:
    from qcompiler.backends.torch.site import Kernel, Site

SPEED = Path(__file__).with_name("speed.json")
SIZES = (("small", 4_096), ("medium", 65_536))  # elements of the largest tensor, up to which a class goes; "large" has the rest
MARGIN = 0.9  # a kernel takes the place of one before it where it needs less than this part of its time
ORDER = ("default", "avx2", "avx512")  # vector widths; one that was not measured counts as the one below


@functools.cache
def recurrent_table() -> Mapping[str, Any]:
    """Microseconds of recurrent layers, [float, int8 dynamic], by vector width, engine, op and number of weights of a cell."""
    return json.loads(SPEED.read_text(encoding="utf-8"))["recurrent"]  # type: ignore[no-any-return]


@functools.cache
def table() -> Mapping[str, Any]:
    """The measurements of speed.json, by vector width."""
    return json.loads(SPEED.read_text(encoding="utf-8"))["microseconds"]  # type: ignore[no-any-return]


def shape_class(site: Site) -> str | None:
    """The class of a site's shapes: its size, and whether one of two operands is spread over the other. None where unknown."""
    shapes = [site.shape(i) for i in range(min(len(site.args), 2))]
    known = [shape for shape in (*shapes, value_of(site.node).shape) if shape is not None]
    if not known:
        return None
    elements = max(math.prod(shape) for shape in known)
    size = next((name for name, limit in SIZES if elements <= limit), "large")
    spread = None not in shapes and len(set(shapes)) == 2
    return f"{size}, one spread" if spread else size


def width(isa: str) -> str:
    """The vectors of an instruction set, which is what these kernels depend on: avx512_vnni has those of avx512."""
    return isa.partition("_")[0]


def _measured(isa: str) -> Mapping[str, Any]:
    known = ORDER[: ORDER.index(width(isa)) + 1] if width(isa) in ORDER else ()
    return next((table()[name] for name in reversed(known) if name in table()), {})


def fastest(site: Site, kernels: Sequence[Kernel]) -> Kernel:
    """Of kernels that all take the site, in their order of preference, the one to run."""
    times: Mapping[str, float] = _measured(site.isa).get(site.op.name, {}).get(shape_class(site), {})
    best = kernels[0]
    for kernel in kernels[1:]:
        if best.label in times and times.get(kernel.label, math.inf) < MARGIN * times[best.label]:
            best = kernel
    return best


def recurrent_times(op: str, weights: int, engine: str, isa: str) -> tuple[float, float] | None:
    """Microseconds in float and int8 dynamic of a recurrent op at the measured size next to its cells'; None where nothing was measured."""
    library = "fbgemm" if engine == "x86" else engine  # x86 packs linear layers with it
    sizes = recurrent_table().get(width(isa), {}).get(library, {}).get(op.replace("_packed", ""), {})
    if not sizes or weights <= 0:
        return None
    found = sizes[min(sizes, key=lambda size: abs(math.log(int(size) / weights)))]
    return found[0], found[1]
