"""The native regions of a converted module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from qcompiler.backends.native.numbers import beside_regions, follow_from_sizes, record_of
from qcompiler.backends.native.plan.drawing import Planned, planned_nodes
from qcompiler.backends.native.region import NativeRegion
from qcompiler.errors import ConfigError, InputError
from qcompiler.executable import Executable, Plan
from qcompiler.inputs.kinds import refuse_kinds


def regions_of(module: nn.Module) -> tuple[NativeRegion, ...]:
    """In the order in which the module runs them."""
    if isinstance(module, Executable):
        module._follow()
    return tuple(value for value in getattr(module, "__dict__", {}).values() if isinstance(value, NativeRegion))


def plan_of(module: nn.Module, nodes: Sequence[dict[str, Any]]) -> Plan | None:
    """The plans of all regions, at the sizes of the example; None for a module without regions."""
    regions = regions_of(module)
    if not regions:
        return None
    text = "\n".join(region.plan() for region in regions)
    return Plan(text, planned_nodes(nodes, [Planned(region.rows(), region.places, region.computes) for region in regions]))


def native_plan(module: nn.Module, *inputs: Tensor) -> str:
    """The plan of a module of the native back end as text: layers, kernels, shapes, and places in memory, region by region.

    Without inputs: at the sizes of the example. With the inputs of a region that is the whole network: at their sizes, with the time that
    each layer took in one run on one thread. ConfigError for a module without native regions.
    """
    regions = regions_of(module)
    if inputs or not regions:
        region = only_region(module, "native_plan")
        refuse_kinds(inputs, "an input")
        if not all(isinstance(x, Tensor) for x in inputs):
            raise InputError("native_plan takes the tensors of a call", code="input-type", hint="or none, for the sizes of the example")
        return region.plan(*inputs)
    return "\n".join(region.plan() for region in regions)


def only_region(module: nn.Module, what: str) -> NativeRegion:
    """The region of a module that is one region, with nothing beside it but numbers that follow from sizes and objects that its results are
    put into. Raises ConfigError, naming what runs in torch, for others."""
    regions, program = regions_of(module), getattr(module, "program", None)
    if not regions:
        raise ConfigError(f"{what} takes a module of the native back end", code="not-native", hint='convert with backend="native"')
    sizes = {} if program is None or len(regions) > 1 else follow_from_sizes(program, regions[0].network)
    others = [] if program is None else beside_regions(program)
    calls = [call.op for place, call in enumerate(others) if place not in sizes and record_of(call) is None]
    if len(regions) > 1 or calls:
        many = f"{len(regions)} native regions, and between them" if len(regions) > 1 else "one native region, and beside it"
        rest = f"{many} {', '.join(dict.fromkeys(calls)) or 'nothing'}"
        raise ConfigError(f"{what} takes a network that is native as a whole; this one has {rest}", code="not-native",
                          hint="qcompiler.remarks(module) says what runs in torch, and why")  # fmt: skip
    return regions[0]
