"""docs/ops.md: the op table with, for each engine, what runs an op."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from qcompiler.backends.torch import kernels
from qcompiler.ops.spec import Op, Output, Spelling
from qcompiler.ops.table import OPS

HEAD = """# Ops

What the graph flow knows, made from the op table and the kernel table by `python docs/generate.py`; a test compares. A new op is a
row of `qcompiler/ops/rows/`; [an example](../examples/custom_op.py) adds one from outside.

**Scale of the result**: `own` is observed for itself; `as input` needs none, since values are copied or averaged; `may be joined`
is own, or shared with the inputs where that adds no noise; `fixed` is a mathematical range; `float` has no int8 form.

**Engines**: the kernels in the order of preference. `int8`: a kernel of torch's on integers. `float`: one node that dequantizes,
computes and quantizes, where torch has no int8 kernel or a slower or wrong one. `table`: all 256 results computed beforehand.
`never runs`: gone in eval mode. Each kernel has conditions; where none takes a call, `explain` and `remarks` say why it stays float.
"""
OUTPUTS = {Output.OWN: "own", Output.SAME: "as input", Output.JOIN: "may be joined", Output.FIXED: "fixed", Output.FLOAT: "float",
           Output.OTHER: "no tensor"}  # fmt: skip
COLUMNS = ("op", "written as", "modules", "scale of the result", *kernels.ENGINES, "notes")


def text() -> str:
    """The page."""
    rows = [_row(op) for op in OPS.rows.values()]
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}", *(f"| {' | '.join(cells)} |" for cells in rows)]
    return "\n".join([HEAD, *lines]) + "\n"


def _row(op: Op) -> tuple[str, ...]:
    written = dict.fromkeys(_spelled(s) for s in op.spellings)
    modules = dict.fromkeys(f.cls.rpartition(".")[2] if isinstance(f.cls, str) else f.cls.__name__ for f in op.modules)
    engines = [", else ".join(dict.fromkeys(_how(kernel) for kernel in _kernels(op, engine))) or _without(op) for engine in kernels.ENGINES]
    return (f"`{op.name}`", _code(written), _code(modules), OUTPUTS[op.output], *engines, "; ".join(_notes(op)))


def _code(names: Any) -> str:
    return " ".join(f"`{name}`" for name in names)


def _kernels(op: Op, engine: str) -> list[kernels.Kernel]:
    site: Any = kernels.Site(op, None, (), {}, None, engine)  # the table is read by op and engine alone
    return [kernel for kernel in kernels.entries(site) if engine in kernel.engines]


def _how(kernel: kernels.Kernel) -> str:
    return "table" if kernel.note.startswith("table") else "float" if kernel.note.startswith("float") else "int8"


def _without(op: Op) -> str:
    return "never runs" if op.output is Output.SAME else "–"


def _notes(op: Op) -> Iterator[str]:
    if op.fixed is not None:
        yield f"scale {op.fixed.scale:g}, zero point {op.fixed.zero_point}"
    if op.takes_bounds:
        yield "takes a ReLU or clamp behind it"
    if op.weight is not None:
        yield "int8 weight"
    if op.rounds_input:
        yield "reads floats where its producer can give them"
    if op.float_reason:
        yield op.float_reason
    for kernel in kernels.TABLE.get(op.name, ()):
        why = re.split(r"[:,;] ", kernel.note, maxsplit=1)[1:]
        yield from (reason for reason in why if reason != "int8 weights")


def _spelled(spelling: Any) -> str:
    target: Callable[..., Any] | str = spelling.target if isinstance(spelling, Spelling) else spelling
    return f".{target}()" if isinstance(target, str) else NAMES.get(target, getattr(target, "__name__", str(target)))


def _names() -> dict[Any, str]:
    """The functions of torch.nn.functional, torch and operator by the name a user writes."""
    found: dict[Any, str] = {}
    for prefix, module in (("F", F), ("torch", torch), ("operator", operator)):
        for name, value in vars(module).items():
            if callable(value) and not name.startswith("_"):
                found.setdefault(value, f"{prefix}.{name}")
    return found


NAMES = _names()
