"""The plan of a region as text: its layers with their kernels, shapes, and places in the arena. Equal plans give equal text."""

from __future__ import annotations

from collections.abc import Mapping

from qcompiler.backends.native.plan.layer import Layer
from qcompiler.backends.native.plan.place import CONSTANTS, Place
from qcompiler.backends.native.plan.table import Table


def plan_text(table: Table, weights: int, nanoseconds: Mapping[str, int] | None = None) -> str:
    """`weights`: bytes of packed constants. `nanoseconds`: what each layer took, by its result, where that was measured."""
    sizes = table.sizes
    given = ", ".join(f"{name} {_times(sizes.shape(name))}" for name, _ in sizes.network.inputs)
    computing = {layer.out: index for index, layer in enumerate(sizes.network.computing)}
    head = f"native region: {len(computing)} layers, inputs {given}, arena {table.struct.arena} bytes, constants {weights} bytes"
    rows = [_row(layer, computing, table) + _time(layer, nanoseconds) for layer in sizes.network.layers]
    return "\n".join([head, *_aligned(rows), f"hands out {', '.join(sizes.network.outputs)}", ""])


def _row(layer: Layer, computing: Mapping[str, int], table: Table) -> list[str]:
    number = f"layer_{computing[layer.out]}" if layer.out in computing else "-"
    return [number, layer.out, layer.text() or type(layer).__name__.lower(), _shape(table.sizes.shapes[layer.out]), _where(layer, table)]


def _where(layer: Layer, table: Table) -> str:
    """The bytes of the arena that the result takes, or whose they are."""
    network, place = table.sizes.network, table.sizes.places.get(layer.out)
    if not isinstance(place, Place):
        return "in a tensor of the caller" if layer.out in network.outputs and layer.computes else ""
    if place.buffer < 0:
        return "in the constants" if place.buffer == CONSTANTS else "in a tensor of the caller"
    start = table.offsets[place.buffer]
    where = f"{start}..{start + table.sizes.buffers[place.buffer].bytes}"
    pads = network.halos.get(layer.out, ())
    home = network.homes.get(layer.out)
    return where + (f" halo {_times(pads)}" if any(pads) else "") + (f" in {home.whole}" if home is not None else "")


def _time(layer: Layer, nanoseconds: Mapping[str, int] | None) -> list[str]:
    return [] if nanoseconds is None else [f"{nanoseconds[layer.out] / 1e3:.1f} us" if layer.out in nanoseconds else ""]


def _shape(value: object) -> str:
    if not isinstance(value, tuple):
        return str(value)
    return ", ".join(_times(part) for part in value) if value and isinstance(value[0], tuple) else _times(value)


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "1"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
