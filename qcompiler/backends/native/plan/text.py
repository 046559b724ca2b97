"""The plan of a region as text: its layers with their kernels, shapes, and places in the arena. Equal plans give equal text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qcompiler.backends.native.plan.rows import Row, microseconds, plan_rows, settings, spelled, times
from qcompiler.backends.native.plan.table import Table

HEAD = ["", "value", "layer", "kernels", "shape", "buffer", "bytes of the arena"]


def plan_text(table: Table, kernels: Sequence[tuple[str, ...]], weights: int, nanoseconds: Mapping[str, int] | None = None) -> str:
    """`kernels`: of each layer that computes. `weights`: bytes of packed constants. `nanoseconds`: what each layer took, by its result,
    where that was measured."""
    sizes, rows = table.sizes, plan_rows(table, kernels)
    given = ", ".join(f"{name} {times(sizes.shape(name))}" for name, _ in sizes.network.inputs)
    given += f" in each of {table.struct.parts} parts" if table.struct.parts > 1 else ""
    count = sum(row.number is not None for row in rows)
    head = f"native region: {count} layers, inputs {given}, arena {table.struct.arena} bytes, constants {weights} bytes"
    lines = [HEAD + ([] if nanoseconds is None else ["time"])]
    lines += [_cells(row) + ([] if nanoseconds is None else [microseconds(row.layer, nanoseconds)]) for row in rows]
    return "\n".join([head, *_aligned(lines), f"hands out {', '.join(sizes.network.outputs)}", ""])


def _cells(row: Row) -> list[str]:
    number = f"layer_{row.number}" if row.number is not None else "-"
    buffer = "" if row.buffer is None else f"#{row.buffer}"
    return [number, row.layer.out, settings(row.layer), " ".join(row.kernels), spelled(row.shape), buffer, _where(row)]


def _where(row: Row) -> str:
    """The bytes of the arena that the result takes, or whose they are."""
    if row.offset is None or row.bytes is None:
        return "in a tensor of the caller" if row.given else ""
    where = f"{row.offset}..{row.offset + row.bytes}"
    return where + (f" halo {times(row.halo)}" if row.halo else "") + (f" in {row.whole}" if row.whole else "")


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
