"""Rows of tables by their numbers: embeddings of floats, or of 8-bit codes with a scale and a zero point a row."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcompiler.backends.native.emit.layer_code import LayerCode
from qcompiler.backends.native.plan.by_number import ByNumber
from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.dynamic import DOUBLES
from qcompiler.backends.native.plan.float_pointwise import FloatPair
from qcompiler.backends.native.plan.floats import FLOATS, as_pixels, operand, order_of, result, width
from qcompiler.backends.native.plan.layer import Bound, OfOne, merged
from qcompiler.backends.native.plan.place import Axes, Place
from qcompiler.backends.native.plan.planning import Facts, Planning
from qcompiler.backends.native.plan.reduce import Reduce, reduced
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.shape import View
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.steps import Step, is_tensor

MOST_ROWS = 2**24  # whose numbers floats hold


@dataclass(frozen=True)
class Rows:
    """A table (rows, width): floats, or codes with a scale and a zero point a row, which is that of `codes`."""

    values: Tensor
    scale: Tensor | None = None
    zero: Tensor | None = None

    def codes(self) -> NDArray[np.uint8]:
        """From 0 to 255, as the kernel takes them. Made where they are packed: as a value of the plan they would stay."""
        codes: NDArray[np.uint8] = self.values.view(torch.uint8).numpy()
        return codes ^ np.uint8(128) if self.values.dtype is torch.int8 else codes


@dataclass(frozen=True, eq=False)
class Embed(OfOne, ByNumber):
    """Row x[...] of a table for each number of x."""

    table: Rows
    codes: Codes | None
    source: str = ""  # what gives the numbers, seen in any shape

    @property
    def lies_anywhere(self) -> bool:
        return False

    @property
    def numbers(self) -> str:
        return self.x

    @property
    def meaning(self) -> str:
        return f"rows 0 to {len(self.table.values) - 1} of a table"

    def reach(self, sizes: Sizes) -> int:
        return len(self.table.values)

    def of_what(self, reach: int) -> str:
        return f"a table of {reach} rows"

    def by_sample(self, samples: Samples) -> bool:
        return True

    def shape(self, sizes: Sizes) -> Axes:
        return (*sizes.shape(self.x), self.table.values.shape[1])

    def place(self, sizes: Sizes) -> Place:
        self.check_numbers(sizes)
        given = sizes.place(self.x)
        return sizes.new(self.out, (*order_of(given), len(given.shape)), width(self.codes))

    def bind(self, sizes: Sizes) -> Bound:
        y, x = sizes.place(self.out), sizes.place(self.x)
        one = Place((*x.shape, 1), (*x.strides, 4), x.offset, x.buffer, x.size)
        order = y.order if y.order and y.order[-1] == len(x.shape) else (*(d for d in y.order if d != len(x.shape)), len(x.shape))
        axes = merged(tuple(y.shape[d] for d in order[:-1]), [tuple(p.strides[d] for d in order[:-1]) for p in (y, one)])
        return Bound(as_pixels((y, one), axes, len(x.shape)), spread=[4])

    def cost(self, sizes: Sizes) -> int:
        return math.prod(sizes.shape(self.out)) // 4

    def code(self, to: LayerCode) -> None:
        with to.call("embed") as fields:
            result(fields, "y", self.codes)
            operand(fields, "x", None)
            fields.plain(rows=self.table.values.shape[0])
            if self.table.scale is None or self.table.zero is None:
                fields.data("table", self.table.values.numpy(), FLOATS)
            else:
                fields.data("codes", self.table.codes())
                fields.data("scale", self.table.scale.numpy(), DOUBLES)
                fields.data("zero", self.table.zero.numpy(), DOUBLES)

    def text(self) -> str:
        return f"rows {self.x} of {self.table.values.shape[0]}"


def refuse_embedding(step: Step, facts: Facts) -> str | None:
    indices, weight = step.args[:2]
    if not (facts.is_whole(indices) or facts.is_known(indices)):
        return "its numbers are of another dtype"
    if facts.rank(indices) > 4:
        return f"its numbers have {facts.rank(indices)} dimensions"
    fault, length = facts.table_fault(weight, MOST_ROWS), facts.row_length(indices)
    if fault is None and length is not None and length > (rows := facts.shape(weight)[0]):
        return f"its numbers are places among {length} elements, and its table has {rows} rows"
    return fault


def plan_embedding(step: Step, planner: Planning) -> None:
    x, (out, codes) = planner.operand(step.args[0]), planner.result(step)
    planner.add(Embed(out, planner.label(step), x, _rows(step.args[1], planner), codes, planner.source_of(x)))


@dataclass(frozen=True, eq=False)
class Bag(Reduce):
    """The sum, mean or largest of the rows of each bag. Bags without rows are refused, as torch refuses them."""

    def shape(self, sizes: Sizes) -> Axes:
        if sizes.shape(self.x)[-1] == 0:
            raise ValueError("bags without rows")
        return super().shape(sizes)


BAGS = {"sum": "sum", "mean": "mean", "max": "amax"}  # what becomes of the rows of a bag


def refuse_embedding_bag(step: Step, facts: Facts) -> str | None:
    indices, _, offsets, weights = (*step.args, None, None)[:4]
    mode, padding = step.kwargs.get("mode", "mean"), step.kwargs.get("padding_idx")
    if offsets is not None or facts.rank(indices) != 2:
        return "its bags begin at offsets: numbers of two dimensions, a row for each bag, have a C form"
    if padding is not None and (mode != "sum" or type(padding) is not int):
        return f"the {mode} of bags without their padding has no C form, their sum has one"
    if weights is not None and not facts.is_floats(weights):
        return "the factors of its rows are not float32"
    return refuse_embedding(replace(step, args=step.args[:2]), facts)


def plan_embedding_bag(step: Step, planner: Planning) -> None:
    """Rows (B, L, C), times their factors, over L."""
    x, label, table = planner.operand(step.args[0]), planner.label(step), _rows(step.args[1], planner)
    padding, factors = step.kwargs.get("padding_idx"), (*step.args, None, None)[3]
    table = table if padding is None else _with_zeros(table, padding)
    made = planner.add(Embed(f"{step.out}.rows", label, x, table, None, planner.source_of(x)))
    if factors is not None:
        wide = planner.add(View(f"{step.out}.factors", label, planner.operand(factors), "unsqueeze", (), {"dim": -1}))
        made = planner.add(FloatPair(f"{step.out}.weighted", label, "mul", made, wide, (None, None)))
    reduced(Bag, Step(step.out, BAGS[step.kwargs.get("mode", "mean")], (f"%{made}",), {"dim": 1}), planner)


def _with_zeros(table: Rows, row: int) -> Rows:
    """Row `row` gives zeros."""
    cleared = (table.values if table.scale is None else table.scale).clone()
    cleared[row] = 0
    return replace(table, values=cleared) if table.scale is None else replace(table, scale=cleared)


def _rows(argument: str, planner: Planning) -> Rows:
    if is_tensor(argument):
        values = planner.tensor(argument).float().contiguous()
        return _checked(Rows(values))
    codes, scale, zero, axis = planner.weights[argument[1:]].args
    values, scales, zeros = planner.tensor(codes), planner.tensor(scale).double().reshape(-1), planner.tensor(zero).double().reshape(-1)
    zeros = zeros + 128 if values.dtype is torch.int8 else zeros
    if values.dtype not in (torch.int8, torch.uint8) or axis not in (None, 0):
        raise ValueError("a table is neither floats nor codes of 8 bits by rows")
    count = len(values)
    return _checked(Rows(values.contiguous(), scales.expand(count).contiguous(), zeros.expand(count).contiguous()))


def _checked(rows: Rows) -> Rows:
    if rows.values.dim() != 2 or not 0 < len(rows.values) <= MOST_ROWS:
        raise ValueError(f"a table of shape {tuple(rows.values.shape)}")
    return rows
