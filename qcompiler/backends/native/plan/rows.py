"""The plan of a region at one set of sizes, a row for each layer: its kernels, and where its result lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcompiler.backends.native.plan.layer import Layer
from qcompiler.backends.native.plan.place import CONSTANTS, Axes, Place
from qcompiler.backends.native.plan.table import Table


@dataclass(frozen=True)
class Row:
    """`number`: of the layer's C function, None where there is nothing to compute. `kernels`: the families that it calls. `shape`: of its
    result, or a tuple of shapes, or a number. `buffer`, `offset`, `bytes`: the buffer of the arena that holds its result, None where a
    tensor of the caller does. `halo`: the rim around it. `whole`: the value that it is made as a part of.
    """

    layer: Layer
    number: int | None
    kernels: tuple[str, ...]
    shape: Any
    buffer: int | None = None
    offset: int | None = None
    bytes: int | None = None
    halo: Axes = ()
    whole: str = ""
    given: bool = False  # the result is a tensor of the caller


def plan_rows(table: Table, kernels: Sequence[tuple[str, ...]]) -> list[Row]:
    """`kernels`: of each layer that computes, in order."""
    network = table.sizes.network
    numbers = {layer.out: index for index, layer in enumerate(network.computing)}
    return [_row(layer, numbers.get(layer.out), kernels, table) for layer in network.layers]


def _row(layer: Layer, number: int | None, kernels: Sequence[tuple[str, ...]], table: Table) -> Row:
    network, place = table.sizes.network, table.sizes.places.get(layer.out)
    called = kernels[number] if number is not None else ()
    shape = table.sizes.shapes[layer.out]
    if not isinstance(place, Place):
        return Row(layer, number, called, shape, given=layer.out in network.outputs and layer.computes)
    if place.buffer < 0:  # in the constants, or in a tensor of the caller
        return Row(layer, number, called, shape, given=place.buffer != CONSTANTS)
    home = network.homes.get(layer.out)
    pads = network.halos.get(layer.out, ())
    return Row(layer, number, called, shape, place.buffer, table.offsets[place.buffer], table.sizes.buffers[place.buffer].bytes,
               pads if any(pads) else (), home.whole if home is not None else "")  # fmt: skip


def times(shape: Axes) -> str:
    """2x3x4; 1 for a single number."""
    return "x".join(map(str, shape)) or "1"


def spelled(shape: object) -> str:
    """A shape, several of them, or a number, as text."""
    if not isinstance(shape, tuple):
        return str(shape)
    return ", ".join(times(part) for part in shape) if shape and isinstance(shape[0], tuple) else times(shape)


def settings(layer: Layer) -> str:
    return layer.text() or type(layer).__name__.lower()


def microseconds(layer: Layer, nanoseconds: Mapping[str, int]) -> str:
    return f"{nanoseconds[layer.out] / 1e3:.1f} us" if layer.out in nanoseconds else ""
