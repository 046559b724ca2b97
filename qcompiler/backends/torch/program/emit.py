"""emit: a Program -> the source of a straight-line `forward`, in three spellings."""

from __future__ import annotations

import copy
import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from qcompiler.backends.torch.program.expressions import Expressions
from qcompiler.backends.torch.program.index_inputs import INTEGERS, index_inputs
from qcompiler.backends.torch.program.program import Program
from qcompiler.backends.torch.program.quote import literal
from qcompiler.backends.torch.program.script_types import ScriptTypes
from qcompiler.backends.torch.program.spell import Dialect
from qcompiler.backends.torch.program.statements import Input
from qcompiler.backends.torch.program.values import Const
from qcompiler.backends.torch.runtime.by_shape import shapes_of
from qcompiler.ir.form import CONTAINERS
from qcompiler.ir.nested import Ref, walk

KERNEL_PREFIX = re.compile(r"\W+")


@dataclass(frozen=True)
class Emitted:
    """Source of forward, and what its global names stand for."""

    source: str
    kernels: dict[str, str]  # global -> operation name
    packs: dict[str, str]  # once variable -> name in the source
    tensors: dict[str, str]  # dotted name -> name in the source


class Emitter(Expressions):
    """Writes the source of a program."""

    def __init__(
        self, program: Program, scales: Sequence[float], zero_points: Sequence[int], dialect: Dialect, by_shape: Iterable[str] = ()
    ) -> None:
        """`by_shape`: the once variables that are read from the set of packs for the call's shapes (PacksByShape)."""
        self.program, self.scales, self.zero_points, self.dialect = program, scales, zero_points, dialect
        self.taken = {i.name for i in program.inputs} | {c.out for c in program.calls if c.out} | {"self"}
        self.globals: dict[str, str] = {}
        self.kernels: dict[str, str] = {}
        read = {v.name for c in program.calls for v in c.values() if isinstance(v, Const)}
        read |= {v.name for v in walk(program.output) if isinstance(v, Const)}
        self.packs = {c.out: self.free(f"pack_{c.out}".replace("pack_prepack", "pack")) for c in program.once if c.out}
        self.tensors = {name: self.free(KERNEL_PREFIX.sub("_", f"t_{name}" if name[0].isdigit() else name)) for name in sorted(read)}
        self.by_shape = frozenset(by_shape)
        self.chosen = self.free("packs")  # of the packs by shape: a variable of forward
        self.choice = self.free("packs_for")

    def spelled(self, dialect: Dialect) -> Self:
        """An emitter of the same program in another dialect. What both name has one name: they can share their globals."""
        made = copy.copy(self)
        made.dialect, made.taken, made.globals, made.kernels = dialect, set(self.taken), dict(self.globals), {}
        return made

    def emit(self) -> Emitted:
        body = self.checks() if self.dialect is Dialect.BOUND else self.given() if self.dialect is Dialect.SCRIPT else []
        body += self.choose() if self.by_shape and self.dialect is not Dialect.SCRIPT else []
        last = self.last_uses()
        script = ScriptTypes(self) if self.dialect is Dialect.SCRIPT else None
        for index, call in enumerate(self.program.calls):
            body += self.statement(call) if script is None else script.statement(call)
            if last.get(index) and self.dialect is not Dialect.SCRIPT:
                body.append(f"del {', '.join(last[index])}")
        body.append(f"return {self.text(self.program.output)}")
        head = f"def forward({', '.join(['self', *self.arguments()])}):"
        source = "\n".join([head, *(f"    {line}" for line in body)]) + "\n"
        return Emitted(source, dict(self.kernels), self.packs, self.tensors)

    def given(self) -> list[str]:
        """In TorchScript: the lines before the first statement."""
        return ScriptTypes(self).given()

    def last_uses(self) -> dict[int, list[str]]:
        """Statement index -> variables that no later statement reads."""
        where = {v.name: i for i, c in enumerate(self.program.calls) for v in c.values() if isinstance(v, Ref)}
        kept = {v.name for v in walk(self.program.output) if isinstance(v, Ref)} | {i.name for i in self.program.inputs}
        dying: dict[int, list[str]] = {}
        for call in self.program.calls:
            if call.out in where and call.out not in kept:
                dying.setdefault(where[call.out], []).append(call.out)
        return dying

    def arguments(self) -> list[str]:
        return [self.argument(i) for i in self.program.inputs]

    def argument(self, i: Input) -> str:
        default = f"={self.text(i.default)}" if i.optional else ""
        return f"{i.name}{default}" if self.dialect is not Dialect.SCRIPT else ScriptTypes(self).argument(i)

    def checks(self) -> list[str]:
        """A line or two per input: a call that a kernel would answer with a message of its own is refused here."""
        tensor = self.named("Tensor", "Tensor")
        lines = []
        read = self.read()
        indices = index_inputs(self.program)
        for i in self.program.inputs:
            if i.number is not None:  # any number will do: NumPy's, or a tensor of one element
                lines += [f"if type({i.name}) is not {i.number.__name__}:", f"    {i.name} = self._number({i.name!r}, {i.name})"]
            elif i.form is not None and i.form.kind in CONTAINERS:
                lines.append(f"self._check_parts({i.name!r}, {i.name})")
            if i.dtype is None or i.rank is None:
                continue
            torch_ = self.root("torch")
            other = f"{i.name}.dtype is not {torch_}.{i.dtype}"
            if i.dtype == "quint8":  # brought to the program's qparams, whichever of the two it is
                other = f"{i.name}.dtype not in ({torch_}.quint8, {torch_}.qint8)"
            if i.name in indices:
                other = f"{i.name}.dtype not in ({', '.join(f'{torch_}.{dtype}' for dtype in INTEGERS)})"
            test = f"not isinstance({i.name}, {tensor}) or {other} or {i.name}.dim() != {i.rank}"
            if i.optional and i.name not in read:
                test = f"{i.name} is not {self.text(i.default)} and ({test})"
            lines += [f"if {test}:", f"    self._reject({literal(i.name)}, {i.name})"]
        return lines

    def choose(self) -> list[str]:
        """The line that takes the packs for the shapes of this call."""
        read = {v.name for c in self.program.calls if c.op != "guard.guard" for v in c.values() if isinstance(v, Ref)}
        plain = {i.name for i in self.program.inputs if i.dtype is not None and not i.optional}
        shapes = [f"{i.name}.shape" if i.name in plain else f"{self.named('op shapes_of', 'shapes_of')}({i.name})"
                  for i in self.program.inputs if i.name in read]  # fmt: skip
        return [f"{self.chosen} = {self.member(self.choice)}({', '.join(shapes)})"]

    def namespace(self, resolve: Callable[[str], object]) -> dict[str, object]:
        """Globals that the source needs, kernels through `resolve`."""
        import collections
        from typing import Optional

        modules = {"torch": torch, "F": torch.nn.functional, "operator": operator, "math": math, "collections": collections}
        kinds = {"Tensor": torch.Tensor, "Optional": Optional, "list": list, "tuple": tuple, "dict": dict}
        fixed = {f"module {k}": v for k, v in modules.items()} | kinds | {"op shapes_of": shapes_of}
        found = {name: fixed[key] for key, name in self.globals.items() if key in fixed}
        return found | {name: resolve(op) for name, op in self.kernels.items()}
