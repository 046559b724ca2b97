"""Program: a LOWERED graph as frozen plain data, and its one form in JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.statements import (
    Call,
    Input,
    ProgramError,
    call_data,
    input_data,
    is_argument,
    is_name,
    read_call,
    read_input,
    typed,
)
from qcompiler.backends.torch.program.values import Const, Scale, ZeroPoint, from_json, to_json
from qcompiler.backends.torch.site import INSTRUCTION_SETS
from qcompiler.executable.tensors import is_path
from qcompiler.files.values import canonical
from qcompiler.ir.nested import Ref, walk
from qcompiler.ops.records import KINDS

ISAS = ("", *INSTRUCTION_SETS, "sve", "sve256", "vsx", "zvector")  # empty: nobody said; the last four are other CPUs' words in torch
KERNELS = ("quantized::", "onednn::", "runtime.")  # operations that work on quantized tensors


@dataclass(frozen=True)
class Program:
    """All of a compiled module but its tensors, its float leaf modules and the user's functions.

    `once` calls depend on constants alone and run when a module is built; `calls` run in order at each forward; `output`
    nests references as the user's forward nested its results. `qparams` counts activation (scale, zero_point) pairs. `isa`: the
    instruction set that its kernels and ranges were chosen for; empty where nobody said.
    """

    name: str
    inputs: tuple[Input, ...]
    once: tuple[Call, ...]
    calls: tuple[Call, ...]
    output: Any
    qparams: int = 0
    isa: str = ""

    @property
    def statements(self) -> tuple[Call, ...]:
        return self.once + self.calls

    @cached_property
    def constants(self) -> tuple[str, ...]:
        """Dotted names of the tensors it reads, in order of first use."""
        values = [v for c in self.statements for v in c.values()] + list(walk(self.output))
        return tuple(dict.fromkeys(v.name for v in values if isinstance(v, Const)))

    @cached_property
    def leaves(self) -> tuple[str, ...]:
        """Paths of the submodules that it calls."""
        return tuple(dict.fromkeys(c.leaf for c in self.calls if c.leaf is not None))

    @cached_property
    def states(self) -> tuple[str, ...]:
        """Dotted names of the tensors that hold what forward keeps between calls."""
        held = (c.args[0] for c in self.calls if c.op.startswith(registry.STATE_WRITE) and c.args)
        return tuple(dict.fromkeys(h.name for h in held if isinstance(h, Const)))

    @property
    def externals(self) -> tuple[str, ...]:
        """Names of the user's functions that it calls."""
        found = (c.op.removeprefix(registry.EXTERNAL) for c in self.calls if c.op.startswith(registry.EXTERNAL))
        return tuple(dict.fromkeys(found))

    def by_shape(self, engine: str) -> frozenset[str]:
        """Names of the once results that are packs fast at one shape alone, and that a call reads."""
        read = {v.name for c in self.calls for v in c.values() if isinstance(v, Ref)}
        return frozenset(c.out for c in self.once if c.out in read and registry.by_shape(c.op, engine))

    @property
    def records(self) -> tuple[str, ...]:
        """Names of the classes of the user's that its results have."""
        found = (c.op.removeprefix(registry.RECORD) for c in self.calls if c.op.startswith(registry.RECORD))
        return tuple(dict.fromkeys(found))

    @property
    def is_native(self) -> bool:
        """Whether parts of it run as C of its own."""
        return any(c.op == registry.NATIVE_REGION for c in self.once)

    @property
    def int8_calls(self) -> int:
        return sum(c.op.startswith(KERNELS) and not registry.is_fit(c.op) for c in self.calls)

    @property
    def scales_name(self) -> str:
        """Name of the buffer of activation scales; moves aside where the user's model has a tensor of that name."""
        return _free("activation_scales", self.constants + self.leaves)

    @property
    def zero_points_name(self) -> str:
        return _free("activation_zero_points", self.constants + self.leaves)

    def signature(self) -> str:
        """The arguments of forward as the user spells them, for messages."""
        return "(" + ", ".join(f"{i.name}={i.default!r}" if i.optional else i.name for i in self.inputs) + ")"

    def to_data(self) -> dict[str, object]:
        """Plain JSON data."""
        return {
            "name": self.name,
            "inputs": [input_data(i) for i in self.inputs],
            "isa": self.isa,
            "once": [call_data(c) for c in self.once],
            "calls": [call_data(c) for c in self.calls],
            "output": to_json(self.output),
            "qparams": self.qparams,
        }

    def to_json(self) -> str:
        """Canonical text: the same program gives the same bytes."""
        return canonical(self.to_data())

    @staticmethod
    def from_data(data: Any) -> Program:
        """The program that `to_data` wrote, checked. Raises ProgramError; UnknownOpError for an operation not in the registry."""
        try:
            program = Program(
                name=typed(data["name"], str),
                inputs=tuple(read_input(d) for d in typed(data["inputs"], list)),
                once=tuple(read_call(d) for d in typed(data["once"], list)),
                calls=tuple(read_call(d) for d in typed(data["calls"], list)),
                output=from_json(data["output"]),
                qparams=typed(data["qparams"], int),
                isa=typed(data.get("isa", ""), str),  # absent in older files
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ProgramError(f"not a program: {error!r:.200}") from None
        verify(program)
        return program

    @staticmethod
    def from_json(text: str) -> Program:
        """The program that `to_json` wrote, checked; see from_data."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ProgramError(f"not a program: {error!r:.200}") from None
        return Program.from_data(data)


def _free(name: str, taken: Iterable[str]) -> str:
    first = {t.partition(".")[0] for t in taken}
    while name in first:
        name += "_"
    return name


def verify(program: Program) -> None:
    """Raises ProgramError unless each name is defined once before its use and each operation may be called as it is."""
    if not is_argument(program.name):
        raise ProgramError(f"{program.name!r:.80} cannot name a program")
    if program.isa not in ISAS:
        raise ProgramError(f"{program.isa!r:.80} is no instruction set")
    known: set[str] = set()

    def define(name: Any, allowed: Callable[[object], bool] = is_name) -> None:
        if not allowed(name) or name in known:
            raise ProgramError(f"bad or repeated variable {name!r:.80}")
        known.add(name)

    def check(values: Iterable[object], where: str) -> None:
        for v in values:
            if isinstance(v, Ref) and v.name not in known:
                raise ProgramError(f"{where} reads {v.name!r:.80} before it is made")
            if isinstance(v, (Scale, ZeroPoint)) and not 0 <= v.index < program.qparams:
                raise ProgramError(f"{where} reads activation parameter {v.index} of {program.qparams}")
            if isinstance(v, Const) and not is_path(v.name):
                raise ProgramError(f"{where} reads a tensor of bad name {v.name!r:.80}")

    for c in program.once:
        check(c.values(), c.op)
        define(c.out)
    for i in program.inputs:
        define(i.name, is_argument)
        if any(isinstance(v, (Ref, Const, Scale, ZeroPoint)) for v in walk(i.default)):
            raise ProgramError(f"input {i.name!r:.80} has a default that is no literal")
    for c in program.calls:
        check(c.values(), c.op)
        if c.out is not None:
            define(c.out)
    check(walk(program.output), "output")
    for c in program.statements:
        _verify_op(c, once=False)
    for c in program.once:
        _verify_op(c, once=True)


def _verify_op(call: Call, once: bool) -> None:
    if not all(is_name(k) for k in call.kwargs):
        raise ProgramError(f"{call.op!r:.80} has a bad keyword")
    if once and not registry.is_once(call.op):
        raise registry.UnknownOpError(f"operation {call.op!r:.80} may not run when a module is built")
    first = call.args[0] if call.args else None
    if call.op.startswith(registry.STATE_WRITE) and not isinstance(first, Const):
        raise ProgramError(f"{call.op!r:.80} writes what is no tensor of the module")
    if call.op in (registry.LEAF, registry.SUBMODULE):
        if not is_path(first) or (call.op == registry.SUBMODULE and (len(call.args) != 1 or call.kwargs)):
            raise ProgramError(f"bad submodule path {first!r:.80}")
    elif call.op.startswith(registry.METHOD):
        if not call.args or not registry.method_allowed(call.op.removeprefix(registry.METHOD)):
            raise registry.UnknownOpError(f"operation {call.op!r:.80} is not one that a program may call")
    elif call.op.startswith((registry.EXTERNAL, registry.RECORD)):
        if not all(is_name(p) for p in call.op.split(".")):
            raise ProgramError(f"bad function name {call.op!r:.80}")
        if call.op.startswith(registry.RECORD):
            _verify_record(call)
    elif call.op.startswith("guard.") and (len(call.args) != 3 or call.kwargs or not isinstance(call.args[2], str)):
        raise ProgramError(f"{call.op!r:.80} is no check of a value, with a message")
    elif call.op == "builtins.getattr":
        name = call.args[1] if len(call.args) in (2, 3) else None
        if call.kwargs or not is_name(name) or not registry.attribute_allowed(str(name)):
            raise registry.UnknownOpError(f"reading attribute {name!r:.80} is not something that a program may do")
    else:
        registry.resolve(call.op)


def _verify_record(call: Call) -> None:
    """Raises ProgramError unless a result is made of names and as many values."""
    kind, names, values = call.args[:3] if len(call.args) in (3, 4) else ("", (), ())
    tuples = type(names) is tuple and type(values) is tuple
    if kind not in KINDS or call.kwargs or not tuples or len(names) != (0 if kind in ("tuple", "tree") else len(values)):
        raise ProgramError(f"bad result {call.op!r:.80}")
    if kind in ("named", "dataclass") and not all(is_name(name) for name in names):
        raise ProgramError(f"bad fields of {call.op!r:.80}")
