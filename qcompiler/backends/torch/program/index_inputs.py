"""The integer inputs that a program reads as indices of embeddings alone: their kernels take every integer type, so a call may give any."""

from __future__ import annotations

from collections.abc import Iterable

from qcompiler.backends.torch.program.statements import Call, Input
from qcompiler.ir.nested import Ref, walk

INTEGERS = ("int64", "int32", "int16", "int8", "uint8")  # as nn.quantized.embedding takes them
LOOKUPS = {"runtime.embedding_rows": (1,), "runtime.embedding_bag_rows": (1, 2)}  # positions of indices and offsets
MOVES = {"operator.getitem", *(f"{kind}.{name}" for kind in ("method", "torch") for name in (
    "reshape", "view", "flatten", "unflatten", "unsqueeze", "squeeze", "transpose", "permute", "t", "contiguous", "narrow", "select",
    "expand", "flip", "clone", "detach"))}  # fmt: skip
SIZES = ("method.size", "method.dim", "method.numel", "attr.shape")


def index_inputs(inputs: Iterable[Input], calls: Iterable[Call], output: object) -> frozenset[str]:
    """Names of the inputs whose values, moved or not, only embeddings of quantized tables look up."""
    integers = [i.name for i in inputs if i.dtype in INTEGERS]
    readers: dict[str, list[Call]] = {}
    for call in calls if integers else ():
        for name in {value.name for value in call.values() if isinstance(value, Ref)}:
            readers.setdefault(name, []).append(call)
    returned = {value.name for value in walk(output) if isinstance(value, Ref)}
    return frozenset(name for name in integers if _looked_up(name, readers, returned))


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
