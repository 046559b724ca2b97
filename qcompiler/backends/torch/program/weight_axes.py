"""Along which dimension the channels of a weight have scales, as the statements say that pack it."""

from __future__ import annotations

from collections.abc import Iterator

from qcompiler.backends.native.steps import WEIGHT
from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.program import Program
from qcompiler.backends.torch.program.statements import Call
from qcompiler.backends.torch.program.values import Const

TRANSPOSED = "runtime.split_phases"  # what a transposed convolution's weight goes through: (in, out / groups, ...)


def weight_axes(program: Program) -> dict[str, int | None]:
    """By the weight's name; None where it has one scale. Of a weight that is not here it is the first dimension."""
    return {name: axis for call in program.once for name, axis in _axes(call)}


def _axes(call: Call) -> Iterator[tuple[str, int | None]]:
    if call.op == registry.NATIVE_REGION:
        region, tensors = call.args[:2]
        for _, op, args, _ in region["steps"]:
            if op == WEIGHT:
                yield tensors[int(args[0][1:])].name, args[3]
    elif call.args and isinstance(call.args[0], Const):
        names = registry.parameter_names(call.op)
        if call.op == TRANSPOSED:
            yield call.args[0].name, 1
        elif "axis" in names:
            axis = call.args[names.index("axis")]
            yield call.args[0].name, None if axis < 0 else axis
