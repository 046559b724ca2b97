"""docs/ops.md: the op table with, for each engine, what runs an op."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from qcompiler.backends.native.plan.forms import c_forms, takes_codes
from qcompiler.backends.torch.kernels import mode_kernels, modes
from qcompiler.backends.torch.kernels import table as kernels
from qcompiler.backends.torch.target import TorchTarget
from qcompiler.ir.types import Mode
from qcompiler.ops.example_call import call_text
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.spec import Family, Op, Output, Spelling
from qcompiler.ops.table import OPS

HEAD = """# Ops

What the graph flow knows, made from the op table and the kernel table by `python docs/generate.py`; a test compares. A new op is a
row of `qcompiler/ops/rows/`; [an example](../examples/custom_op.py) adds one from outside.

**Scale of the result**: `own` is observed for itself; `as input` needs none, since values are copied or averaged; `may be joined`
is own, or shared with the inputs where that adds no noise; `fixed` is a mathematical range; `float` has no int8 form.

**Engines**: the kernels in the order of preference; of those that take a call, the fastest by measurement runs. `int8`: a kernel of
torch's on integers. `float`: one node that dequantizes, computes and quantizes, where torch has no int8 kernel or a slower or wrong
one. `table`: all 256 results computed beforehand.
**native**: what the native back end makes of it. `int8`: C that computes with integers or moves codes where values are codes, else with
floats if there is a form. `float`: C that computes with floats. `–`: runs in torch between native regions. Forms have conditions; where
none takes a call, a remark `native-torch` says why.
`never runs`: gone in eval mode. **Example**: the call that stands in the row; tests run it, and kernels of ops without cases of their
own are measured on it. Each kernel has conditions; where none takes a call, `explain` and `remarks` say why it stays float.
"""
OUTPUTS = {Output.OWN: "own", Output.SAME: "as input", Output.JOIN: "may be joined", Output.FIXED: "fixed", Output.FLOAT: "float",
           Output.OTHER: "no tensor"}  # fmt: skip
COLUMNS = ("op", "written as", "modules", "scale of the result", *kernels.ENGINES, "native", "notes", "example")


MODES = {Mode.DYNAMIC: "dynamic", Mode.HALF: "float16", Mode.WEIGHT_ONLY: "weight only", Mode.FOUR_BIT: "4-bit weights"}
WITHOUT_DATA = """
## Without calibration data

Ops that take and give floats while their weights are quantized, as dynamic qconfigs ask for. `kernel`: torch's for this purpose, on all
engines or on those named; `floats`: float arithmetic on weights that are kept small and widened once.
"""


def text() -> str:
    """The page."""
    weighted = [op for op in OPS.rows.values() if op.weight is not None or op.family is Family.RECURRENT]
    static = _table(COLUMNS, map(_row, OPS.rows.values()))
    without_data = _table(("op", *MODES.values()), ((f"`{op.name}`", *(_mode(op, mode) for mode in MODES)) for op in weighted))
    return "\n".join([HEAD, *static, WITHOUT_DATA, *without_data]) + "\n"


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *(f"| {' | '.join(cells)} |" for cells in rows)]


def _mode(op: Op, mode: Mode) -> str:
    """What runs an op whose qconfig asks for a mode."""
    found = modes.choose(op, mode)
    if isinstance(found, Obstacle):
        return "–"
    chosen, _ = found
    own = [kernel for kernel in mode_kernels.TABLE[chosen].get(op.name, ()) if not kernel.note]
    engines = [engine for engine in kernels.ENGINES if any(engine in kernel.engines for kernel in own)]
    where = "" if len(engines) in (0, len(kernels.ENGINES)) else f" on {', '.join(engines)}, else floats"
    text = f"kernel{where}" if engines else "floats"
    return text if chosen is mode else f"as {MODES[chosen]}: {text}"


def _row(op: Op) -> tuple[str, ...]:
    written = dict.fromkeys(_spelled(s) for s in op.spellings)
    modules = dict.fromkeys(f.cls.rpartition(".")[2] if isinstance(f.cls, str) else f.cls.__name__ for f in op.modules)
    engines = [", else ".join(dict.fromkeys(_how(kernel) for kernel in _kernels(op, engine))) or _without(op) for engine in kernels.ENGINES]
    return (
        f"`{op.name}`",
        _code(written),
        _code(modules),
        OUTPUTS[op.output],
        *engines,
        _native(op),
        "; ".join(_notes(op)),
        f"`{call_text(op)}`",
    )


def _native(op: Op) -> str:
    """What the forms of the native back end compute with."""
    if op.name not in c_forms():
        return "–"
    return "int8" if takes_codes(op.name) or op.weight is not None or op.family is Family.RECURRENT else "float"


def _code(names: Any) -> str:
    return " ".join(f"`{name}`" for name in names)


def _kernels(op: Op, engine: str) -> list[kernels.Kernel]:
    site: Any = kernels.Site(op, None, (), {}, None, engine)  # the table is read by op and engine alone
    return [kernel for kernel in kernels.entries(site) if engine in kernel.engines]


def _how(kernel: kernels.Kernel) -> str:
    return "table" if kernel.note.startswith("table") else "float" if kernel.note.startswith("float") else "int8"


def _without(op: Op) -> str:
    return "never runs" if op.output is Output.SAME else "table of 8-bit rows" if op.family is Family.EMBEDDING else "–"


def _notes(op: Op) -> Iterator[str]:
    if op.fixed is not None:
        yield f"scale {op.fixed.scale:g}, zero point {op.fixed.zero_point}"
    if op.takes_bounds:
        yield "takes a ReLU or clamp behind it"
    if op.weight is not None:
        yield "int8 weight"
    if TorchTarget().computes_float(op):
        yield "reads floats where its producer can give them"
    if op.draws({}):
        yield "draws random numbers in training"
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
