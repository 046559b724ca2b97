"""What a program computes beside its native region: numbers that follow from sizes, and checks of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from qcompiler.backends.native.plan.network import Network
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.read import NUMBERS
from qcompiler.backends.native.steps import leaves
from qcompiler.backends.torch.program.program import Program
from qcompiler.backends.torch.program.statements import Call
from qcompiler.executable.arguments import form_of
from qcompiler.ir.form import Form
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


@dataclass(frozen=True)
class Given:
    """An argument of a call, or what is taken out of a container that is one. `label`: as the user spells it."""

    label: str
    form: Form

    def part(self, key: object) -> Given | None:
        """What stands under a key or an index; None for one that the example has not."""
        places = list(self.form.keys) if self.form.kind == "dict" else list(range(len(self.form.parts)))
        if key not in places:
            return None
        place = places.index(key)
        return Given(self.label + self.form.steps()[place], self.form.parts[place])


def arguments_of(program: Program) -> dict[str, Given]:
    """By the names that the program has for them."""
    found = {i.name: Given(i.name, form_of(i.form or Form("object"), i.dtype, i.shape)) for i in program.inputs}
    for call in beside_regions(program):
        source = call.args[0] if call.op == "operator.getitem" else None
        given = found.get(source.name) if isinstance(source, Ref) else None
        if call.out is not None and given is not None and (part := given.part(call.args[1])) is not None:
            found[call.out] = part
    return found


def follow_from_sizes(program: Program, network: Network) -> dict[int, Call]:
    """The calls beside the one region that give a number that sizes settle, or an argument out of a container, or check one, by their
    places among those beside it.

    Numbers are computed with, and taken out of tuples, by the same operators as tensors: what reads a tensor in that way is none.
    """
    taken = {name: network.outputs[call.args[1]] for name, call in parts_of_regions(program).items()}
    others = {name for name, given in arguments_of(program).items() if given.form.kind == "tensor"}
    others |= {out for out, name in taken.items() if name in network.tensor_outputs}
    found = {}
    for place, call in enumerate(beside_regions(program)):
        if call.op in _OF_TENSORS or (call.op in NUMBERS and others.isdisjoint(_read(call))):
            found[place] = call
        elif call.out is not None:
            others.add(call.out)
    return found


def _read(call: Call) -> list[str]:
    return [leaf.name for leaf in leaves((call.args, call.kwargs)) if isinstance(leaf, Ref)]


def record_of(call: Call) -> object:
    """What a call puts into an object of the user's, by name or in order; None for any other call."""
    if not call.op.startswith("record.") or call.args[0] == "tree":
        return None
    names, values = call.args[1:3]
    return tuple(values) if call.args[0] == "tuple" else dict(zip(names, values, strict=True))


def numbers_beside(program: Program, network: Network, inputs: Sequence[str], sizes: Sizes) -> dict[str, object]:
    """What such calls give at the sizes of a call, by name. `inputs`: what the program calls the inputs of its one region, in order.

    Raises InputError where a check fails. A check of an argument that no region takes is passed over: it has the value of the example.
    """
    known: dict[str, object] = {
        name: torch.empty(sizes.shape(own), device="meta") for name, (own, _) in zip(inputs, network.inputs, strict=True)
    }
    for name, part in parts_of_regions(program).items():
        found = sizes.shapes[network.outputs[part.args[1]]]
        known[name] = torch.empty(found, device="meta") if isinstance(found, tuple) else found
    numbers = {}
    for call in follow_from_sizes(program, network).values():
        if not all(name in known for name in _read(call)):
            continue
        args, kwargs = rewrite((call.args, dict(call.kwargs)), lambda leaf: known[leaf.name] if isinstance(leaf, Ref) else leaf)
        made = (_OF_TENSORS.get(call.op) or NUMBERS[call.op])(*args, **kwargs)
        if call.out is not None:
            known[call.out] = numbers[call.out] = made
    return numbers
