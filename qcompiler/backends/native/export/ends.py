"""What goes into an exported network and what comes out: names as the user's forward has them, and the codes behind the floats."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from qcompiler.backends.native.emit.source import tensor_outputs
from qcompiler.backends.native.numbers import RUN, arguments_of, beside_regions, follow_from_sizes, parts_of_regions, record_of
from qcompiler.backends.native.plan.by_number import numbers_given
from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.edges import Dequantize, Quantize
from qcompiler.backends.native.plan.network import Network
from qcompiler.backends.native.region import NativeRegion
from qcompiler.backends.torch.program.program import Program
from qcompiler.errors import ConfigError
from qcompiler.ir.nested import Ref

Path = tuple[object, ...]  # keys and indices that lead to a value in the result


@dataclass(frozen=True)
class End:
    """`value`: its name in the network. `label`: what the user calls it. `constant`: the same as C can write it, alone of its kind.
    `codes`: None where it is floats all the way. `whole`: whether it is whole numbers of 64 bits in every call. `numbers`: of what rows or
    elements an input gives the numbers; empty where it gives none."""

    value: str
    label: str
    constant: str
    codes: Codes | None
    whole: bool
    numbers: str = ""


@dataclass(frozen=True)
class Ends:
    """`numbers`: results that are no tensors, by label: the value's name, or the literal. `has_codes`: whether the network can be run on
    codes."""

    inputs: tuple[End, ...]
    results: tuple[End, ...]
    numbers: tuple[tuple[str, object], ...]
    has_codes: bool


def ends_of(module: nn.Module, region: NativeRegion) -> Ends:
    """Of a module that is one region. Raises ConfigError for a result that is an input as it came."""
    program = program_of(module)
    network = region.network
    has_codes = _has_codes(network, region.source.kernels)
    names = [name for name, _ in network.inputs]
    arguments = arguments_of(program)
    given = [arguments[name].label if name in arguments else name for name in inputs_of(program)]
    results, numbers = _results(program, network)
    codes_in, codes_out = (_codes_in(network), _codes_out(network)) if has_codes else ({}, {})
    whole = [name for name, dtype in network.dtypes.items() if dtype is torch.int64]
    made = _ends(list(results), [", ".join(labels) for labels in results.values()], codes_out, whole)
    given_numbers = numbers_given(network.layers)
    what = {name: " and ".join(dict.fromkeys(layer.meaning for layer in layers)) for name, layers in given_numbers.items()}
    inputs = tuple(replace(end, numbers=what.get(end.value, "")) for end in _ends(names, given, codes_in, ()))
    return Ends(inputs, made, numbers, has_codes)


def program_of(module: nn.Module) -> Program:
    program = module.program
    assert isinstance(program, Program)
    return program


def inputs_of(program: Program) -> list[str]:
    """What the program calls the inputs of its one region."""
    (run,) = [call for call in program.calls if call.op == RUN]
    return [ref.name for ref in run.args[1]]


def _has_codes(network: Network, kernels: Sequence[tuple[str, ...]]) -> bool:
    """Whether all that turns floats into codes and back stands at the ends, and something does."""
    turned = [layer for layer, called in zip(network.computing, kernels, strict=True) if {"quantize", "dequantize"} & set(called)]
    inputs = _codes_in(network)
    return bool(turned) and all(
        layer.x in inputs if isinstance(layer, Quantize) else isinstance(layer, Dequantize) and layer.out in network.outputs
        for layer in turned
    )


def _codes_in(network: Network) -> dict[str, Codes]:
    """Inputs that one layer reads, which makes codes of them."""
    found = {}
    for name, _ in network.inputs:
        readers = [layer for layer in network.layers if name in layer.reads]
        if len(readers) == 1 and isinstance(readers[0], Quantize) and name not in network.outputs:
            found[name] = readers[0].codes
    return found


def _codes_out(network: Network) -> dict[str, Codes]:
    return {layer.out: layer.codes for layer in network.layers if isinstance(layer, Dequantize)}


def _results(program: Program, network: Network) -> tuple[dict[str, list[str]], tuple[tuple[str, object], ...]]:
    """Labels of each tensor, in the order in which the network hands them out, and of what is no tensor."""
    taken = {name: network.outputs[call.args[1]] for name, call in parts_of_regions(program).items()}
    beside = beside_regions(program)
    arguments = arguments_of(program)
    sizes = (call.out for call in follow_from_sizes(program, network).values() if call.out not in arguments)
    taken |= {out: out for out in sizes if out is not None}
    records = {str(call.out): record for call in beside if (record := record_of(call)) is not None}
    tensors: dict[str, list[str]] = {name: [] for name in tensor_outputs(network)}
    numbers: list[tuple[str, object]] = []
    for path, leaf in _leaves(program.output, (), records):
        label = "".join(f"[{key!r}]" for key in path) or "result"
        name = taken.get(leaf.name) if isinstance(leaf, Ref) else None
        if isinstance(leaf, Ref) and name is None:
            name = arguments[leaf.name].label if leaf.name in arguments else leaf.name
            raise ConfigError(f"{label} of the model is its input {name!r} as it came: C has nothing to compute for it",
                              code="export-result", hint="leave it out of the results")  # fmt: skip
        if name in tensors:
            tensors[name].append(label)
        else:
            numbers.append((label, leaf if name is None else name))
    if not tensors or not network.inputs:
        raise ConfigError("a network without tensors that go in or come out is no C function", code="export-result")
    for name, labels in tensors.items():
        labels += [] if labels else [name]
    return tensors, tuple(numbers)


def _leaves(value: object, path: Path, records: Mapping[str, object]) -> Iterator[tuple[Path, object]]:
    """`records`: what objects of the user's hold, by the names of the calls that make them."""
    if isinstance(value, Ref) and value.name in records:
        value = records[value.name]
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, key), records)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, index), records)
    else:
        yield path, value


def _ends(values: Sequence[str], labels: Sequence[str], codes: dict[str, Codes], whole: Sequence[str]) -> tuple[End, ...]:
    used: set[str] = set()
    found = []
    for value, label in zip(values, labels, strict=True):
        base = re.sub(r"\W+", "_", label, flags=re.ASCII).strip("_").upper() or "VALUE"
        constant, number = base, 1
        while constant in used:
            number += 1
            constant = f"{base}_{number}"
        used.add(constant)
        found.append(End(value, label, constant, codes.get(value), value in whole))
    return tuple(found)
