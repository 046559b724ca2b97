"""What a program computes beside its native region: numbers that follow from sizes, and checks of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.read import NUMBERS
from qcompiler.backends.native.steps import leaves
from qcompiler.backends.torch.program.program import Program
from qcompiler.backends.torch.program.statements import Call
from qcompiler.ir.nested import Ref, rewrite

RUN = "runtime.run_region"
_OF_TENSORS: dict[str, Callable[..., int | torch.Size]] = {"method.size": torch.Tensor.size, "method.dim": torch.Tensor.dim}


def parts_of_regions(program: Program) -> dict[str, Call]:
    """The calls that take a result of a region out of what the region gives, by their own names."""
    made = {call.out for call in program.calls if call.op == RUN}
    taken = (c for c in program.calls if c.op == "operator.getitem" and isinstance(c.args[0], Ref) and c.args[0].name in made)
    return {call.out: call for call in taken if call.out is not None}


def beside_regions(program: Program) -> list[Call]:
    """All calls but those of regions, in order."""
    parts = parts_of_regions(program)
    return [call for call in program.calls if call.op != RUN and call.out not in parts]


def follows_from_sizes(call: Call) -> bool:
    """Whether a call gives a number that sizes settle, or checks one."""
    return call.op in NUMBERS or call.op in _OF_TENSORS


def record_of(call: Call) -> object:
    """What a call puts into an object of the user's, by name or in order; None for any other call."""
    if not call.op.startswith("record.") or call.args[0] == "tree":
        return None
    names, values = call.args[1:3]
    return tuple(values) if call.args[0] == "tuple" else dict(zip(names, values, strict=True))


def numbers_beside(program: Program, inputs: Sequence[str], sizes: Sizes) -> dict[str, object]:
    """What such calls give at the sizes of a call, by name. `inputs`: what the program calls the inputs of its one region, in order.

    Raises InputError where a check fails. A check of an argument that no region takes is passed over: it has the value of the example.
    """
    network = sizes.network
    known: dict[str, object] = {
        name: torch.empty(sizes.shape(own), device="meta") for name, (own, _) in zip(inputs, network.inputs, strict=True)
    }
    for name, part in parts_of_regions(program).items():
        found = sizes.shapes[network.outputs[part.args[1]]]
        known[name] = torch.empty(found, device="meta") if isinstance(found, tuple) else found
    numbers = {}
    for call in beside_regions(program):
        read = [leaf.name for leaf in leaves((call.args, call.kwargs)) if isinstance(leaf, Ref)]
        if not follows_from_sizes(call) or not all(name in known for name in read):
            continue
        args, kwargs = rewrite((call.args, dict(call.kwargs)), lambda leaf: known[leaf.name] if isinstance(leaf, Ref) else leaf)
        made = (_OF_TENSORS.get(call.op) or NUMBERS[call.op])(*args, **kwargs)
        if call.out is not None:
            known[call.out] = numbers[call.out] = made
    return numbers
