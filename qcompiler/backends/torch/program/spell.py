"""How the arguments of a program's calls are spelled in source: variables, packs, tensors, literals, and the names they go by."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from enum import Enum
from typing import Any

import torch

from qcompiler.backends.torch.program.quote import literal
from qcompiler.backends.torch.program.statements import is_name
from qcompiler.backends.torch.program.values import Const, Scale, ZeroPoint
from qcompiler.files.dtypes import DTYPE_NAMES
from qcompiler.ir.nested import Ref

MAX_NAME = 120  # of a variable


class Dialect(Enum):
    """Where the source runs: inside CompiledModule, under torch.jit.script, or in a file of its own."""

    BOUND = "bound"  # kernels, packs and tensors are globals
    SCRIPT = "script"  # packets of torch.ops; packs and tensors are attributes of self
    FILE = "file"  # kernels are globals of the file; packs and tensors are attributes of self


class Speller:
    """Spells values in one dialect. `taken`: the names in use; `globals`: the name of each thing that is no argument, by key.

    `packs` and `tensors`: names by once variable and by dotted name; `by_shape`: the once variables that are read from `chosen`, the packs
    for the call's shapes.
    """

    dialect: Dialect
    taken: set[str]
    globals: dict[str, str]
    packs: dict[str, str]
    tensors: dict[str, str]
    scales: Sequence[float]
    zero_points: Sequence[int]
    by_shape: frozenset[str]
    chosen: str

    def free(self, name: str) -> str:
        """A fresh variable that reads like `name`: none that a class would mangle, none longer than a line."""
        name = re.sub(r"\W", "_", name, flags=re.ASCII)
        name = re.sub(r"^__+", "_", name)
        name = name if len(name) <= MAX_NAME else f"{name[: MAX_NAME // 2]}_{name[-MAX_NAME // 2 :]}"
        while name in self.taken or not is_name(name):
            name += "_"
        self.taken.add(name)
        return name

    def named(self, key: str, preferred: str) -> str:
        """The global name for something, the same each time."""
        if key not in self.globals:
            self.globals[key] = self.free(preferred)
        return self.globals[key]

    def root(self, space: str) -> str:
        if space in ("torch", "F"):
            return self.named(f"module {space}", space)
        return f"{self.root('torch')}.{space}"

    def list(self, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
        return ", ".join([*map(self.text, args), *(f"{k}={self.text(v)}" for k, v in sorted(kwargs.items()))])

    def index(self, value: object) -> str:
        if isinstance(value, slice):
            start, stop, step = ("" if v is None else self.text(v) for v in (value.start, value.stop, value.step))
            return f"{start}:{stop}" + (f":{step}" if step else "")
        if isinstance(value, tuple) and value and not any(isinstance(v, tuple) for v in value):
            return ", ".join(map(self.index, value)) + ("," if len(value) == 1 else "")
        return self.text(value)

    def atom(self, value: object) -> str:
        text = self.text(value)
        return text if isinstance(value, (Ref, Const)) else f"({text})" if not str(text).isidentifier() and not text[0].isdigit() else text

    def receiver(self, value: object) -> str:
        """What a dot may follow."""
        return self.text(value) if isinstance(value, (Ref, Const)) else f"({self.text(value)})"

    def text(self, value: Any) -> str:
        """Source of one argument."""
        if isinstance(value, Ref):
            return self.pack(value.name) if value.name in self.packs else value.name
        if isinstance(value, Const):
            return self.member(self.tensors[value.name])
        if isinstance(value, Scale):
            return repr(float(self.scales[value.index]))
        if isinstance(value, ZeroPoint):
            return repr(int(self.zero_points[value.index]))
        if isinstance(value, list):
            return f"[{', '.join(map(self.text, value))}]"
        if isinstance(value, tuple):
            return f"({', '.join(map(self.text, value))}{',' if len(value) == 1 else ''})"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{self.text(k)}: {self.text(v)}" for k, v in value.items()) + "}"
        return self.literal(value)

    def pack(self, name: str) -> str:
        """What a once call made."""
        alias = self.packs[name]
        return f"{self.chosen}.{alias}" if name in self.by_shape and self.dialect is not Dialect.SCRIPT else self.member(alias)

    def member(self, name: str) -> str:
        return name if self.dialect is Dialect.BOUND else f"self.{self.attribute(name)}"

    def attribute(self, name: str) -> str:
        """What a pack or tensor is called on self: in a CompiledModule, beside the user's names."""
        return name if self.dialect is Dialect.FILE else f"_jit_{name}"

    def literal(self, value: object) -> str:
        if isinstance(value, slice):
            return f"slice({self.text(value.start)}, {self.text(value.stop)}, {self.text(value.step)})"
        if isinstance(value, torch.dtype):
            return f"{self.root('torch')}.{DTYPE_NAMES[value]}"
        if isinstance(value, torch.device):
            return f"{self.root('torch')}.device({literal(str(value))})"
        if isinstance(value, (torch.memory_format, torch.layout)):
            return f"{self.root('torch')}.{str(value).removeprefix('torch.')}"
        if isinstance(value, complex):
            return f"complex({self.literal(value.real)}, {self.literal(value.imag)})"
        if isinstance(value, float) and not math.isfinite(value):  # inf, nan
            return f"float({literal(repr(value))})"
        return "..." if value is Ellipsis else literal(value)
