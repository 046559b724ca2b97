"""The integer inputs that a program reads as indices of embeddings alone: their kernels take every integer type, so a call may give any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from qcompiler.backends.native.steps import Region
from qcompiler.backends.torch.program.program import Program
from qcompiler.backends.torch.program.registry import NATIVE_REGION, RUN_REGION
from qcompiler.backends.torch.program.statements import Call
from qcompiler.ir.nested import Ref, rewrite, walk

INTEGERS = ("int64", "int32", "int16", "int8", "uint8")  # as nn.quantized.embedding takes them
ROW = "row."  # before the op of a step of a native region
# The positions of indices and offsets.
LOOKUPS = {"runtime.embedding_rows": (1,), "runtime.embedding_bag_rows": (1, 2), f"{ROW}embedding": (0,)}
MOVES = {"operator.getitem", f"{ROW}getitem", *(f"{kind}.{name}" for kind in ("method", "torch", "row") for name in (
    "reshape", "view", "flatten", "unflatten", "unsqueeze", "squeeze", "transpose", "permute", "t", "contiguous", "narrow", "select",
    "expand", "flip", "clone", "detach"))}  # fmt: skip
SIZES = ("method.size", "method.dim", "method.numel", "attr.shape", f"{ROW}size")


def index_inputs(program: Program) -> frozenset[str]:
    """Names of the inputs whose values, moved or not, only embeddings look up: those of quantized tables, and of native regions."""
    integers = [i.name for i in program.inputs if i.dtype in INTEGERS]
    if not integers:
        return frozenset()
    returned = {value.name for value in walk(program.output) if isinstance(value, Ref)}
    readers: dict[str, list[Call]] = {}
    for call in _opened(program, returned):
        for name in {value.name for value in call.values() if isinstance(value, Ref)}:
            readers.setdefault(name, []).append(call)
    return frozenset(name for name in integers if _looked_up(name, readers, returned))


def _opened(program: Program, returned: set[str]) -> Iterator[Call]:
    """The calls, with the steps of a native region in the place of its run; what it hands out joins `returned`."""
    regions = {call.out: call.args[0] for call in program.once if call.op == NATIVE_REGION}
    for call in program.calls:
        if call.op != RUN_REGION:
            yield call
            continue
        ref, given = call.args
        region = Region.from_data(regions[ref.name])
        names = {f"%{name}": value for (name, _), value in zip(region.inputs, given)}
        names |= {f"%{step.out}": Ref(f"{call.out} {step.out}") for step in region.steps}  # a name that no value of the program has
        returned |= {value.name for name in region.outputs if isinstance(value := names.get(f"%{name}"), Ref)}
        for step in region.steps:
            args, kwargs = rewrite((step.args, dict(step.kwargs)), partial(_named, names))
            yield Call(f"{call.out} {step.out}", f"{ROW}{step.op}", tuple(args), kwargs)


def _named(names: Mapping[str, object], leaf: object) -> object:
    return names.get(leaf, leaf) if isinstance(leaf, str) else leaf


def _looked_up(name: str, readers: dict[str, list[Call]], returned: set[str]) -> bool:
    """Whether a value is an index wherever it is read; one that nothing reads is none."""
    found, waiting = False, [name]
    while waiting:
        value = waiting.pop()
        if value in returned:
            return False
        for call in readers.get(value, ()):
            if _moves(call, value) and call.out is not None:
                waiting.append(call.out)
            elif _looks_up(call, value):
                found = True
            elif call.op not in SIZES:
                return False
    return found


def _looks_up(call: Call, value: str) -> bool:
    places = {i for i, argument in enumerate(call.args) if argument == Ref(value)}
    return bool(places) and places <= set(LOOKUPS.get(call.op, ()))


def _moves(call: Call, value: str) -> bool:
    read = [held for held in call.values() if held == Ref(value)]
    return call.op in MOVES and len(read) == 1 and call.args[:1] == (Ref(value),)
