"""Where elements stand: argmax and argmin, sorted rows and their first elements.

Places are whole numbers: floats within a region, int64 where they are handed out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from qcompiler.backends.native.emit.layer_code import LayerCode
from qcompiler.backends.native.plan.bundle import Bundle
from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.float_rows import Rows
from qcompiler.backends.native.plan.floats import joint, operand, order_with_last
from qcompiler.backends.native.plan.layer import Bound, Layer, OfOne, Pixels
from qcompiler.backends.native.plan.place import Axes, Place, dense, of_caller
from qcompiler.backends.native.plan.planning import Argument, Facts, Planning, refuse_rows
from qcompiler.backends.native.plan.reduce import Reduce, reduced, refuse_reduce
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.steps import Step, is_value

LONGEST = 2**24  # whole numbers up to here are floats


def _note(name: str, length: int, wanted: int, sizes: Sizes) -> None:
    """Raises ValueError for places that a row of this length does not have, or that floats do not hold."""
    if not wanted <= length <= LONGEST:
        raise ValueError(f"{wanted} places of {length} elements; a row may have {LONGEST}")
    sizes.longest[name] = length


@dataclass(frozen=True, eq=False)
class First(Reduce):
    """Where along the last dimension, which goes, the largest or smallest element stands."""

    @property
    def gives_places(self) -> bool:
        return True

    def place(self, sizes: Sizes) -> Place:
        _note(self.out, sizes.shape(self.x)[-1], 1, sizes)
        return super().place(sizes)

    def code(self, to: LayerCode) -> None:
        with to.call("order") as fields:
            fields.pixels("y")
            operand(fields, "x", self.x_codes)
            fields.set("op", f"QC_{self.op.upper()}")


@dataclass(frozen=True, eq=False)
class Order(Rows):
    """The places of the first `count` elements along a dimension in order; None: of all. `count` may be a number that the sizes give."""

    count: Argument = None
    largest: bool = True

    @property
    def gives_places(self) -> bool:
        return True

    def shape(self, sizes: Sizes) -> Axes:
        shape = list(sizes.shape(self.x))
        if self.count is not None:
            shape[self.dim] = sizes.numbers(self.count)
        return tuple(shape)

    def place(self, sizes: Sizes) -> Place:
        made = sizes.shape(self.out)
        _note(self.out, sizes.shape(self.x)[self.dim], made[self.dim], sizes)
        sizes.places[f"{self.out}.keys"] = sizes.buffer((2 * math.prod(made),), (0,), 4)  # 64 bits each
        return super().place(sizes)

    def bind(self, sizes: Sizes) -> Bound:
        bound = super().bind(sizes)
        bound.pixels.append(Pixels(sizes.place(f"{self.out}.keys"), (1, 1, 1, 1, 1), (0, 0, 0, 0)))
        return bound

    def cost(self, sizes: Sizes) -> int:
        return 4 * math.prod(sizes.shape(self.x))

    def code(self, to: LayerCode) -> None:
        with to.call("order") as fields:
            fields.pixels("y")
            operand(fields, "x", self.x_codes)
            fields.numbers_at("work")
            fields.set("op", "QC_DESCENDING" if self.largest else "QC_ASCENDING")

    def text(self) -> str:
        return f"places of the {'largest' if self.largest else 'smallest'} of {self.x} along {self.dim}"


@dataclass(frozen=True, eq=False)
class Take(Layer):
    """The elements of x at these places along a dimension, counted from the end, as floats."""

    x: str
    at: str
    dim: int
    x_codes: Codes | None

    @property
    def reads(self) -> tuple[str, ...]:
        return self.x, self.at

    @property
    def lies_anywhere(self) -> bool:
        return False

    def by_sample(self, samples: Samples) -> bool:
        return samples.holds(self.reads) and samples.rank(self.x) > -self.dim

    def shape(self, sizes: Sizes) -> Axes:
        return sizes.shape(self.at)

    def place(self, sizes: Sizes) -> Place:
        return self.placed_as(sizes.place(self.at), sizes)

    def placed_as(self, given: Place, sizes: Sizes) -> Place:
        return sizes.new(self.out, order_with_last(given, self.dim % len(given.shape)), 4)

    def bind(self, sizes: Sizes) -> Bound:
        y, at = sizes.place(self.out), sizes.place(self.at)
        pixels, steps = joint(y, [sizes.place(self.x), at.spread(y.shape)], order_with_last(y, self.dim % len(y.shape)))
        return Bound(pixels, spread=steps)

    def code(self, to: LayerCode) -> None:
        with to.call("elements") as fields:
            fields.pixels("y")
            operand(fields, "x", self.x_codes)
            operand(fields, "at", None)
            fields.plain(from_end=int(self.from_end))

    @property
    def from_end(self) -> bool:
        """Whether negative places count from the end of a row."""
        return False

    def text(self) -> str:
        return f"elements of {self.x} at {self.at}"


@dataclass(frozen=True, eq=False)
class HandOutPlaces(OfOne):
    """Places in a tensor of the caller's, as int64."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.int64

    def by_sample(self, samples: Samples) -> bool:
        return True

    def place(self, sizes: Sizes) -> Place:
        shape = sizes.shape(self.out)
        strides, _, _ = dense(shape, range(len(shape)), 8)
        return Place(shape, strides, 0, of_caller(sizes.network.io[self.out]), 8)

    def bind(self, sizes: Sizes) -> Bound:
        pixels, steps = joint(sizes.place(self.out), [sizes.place(self.x)])
        return Bound(pixels, spread=steps)

    def code(self, to: LayerCode) -> None:
        with to.call("int64") as fields:
            fields.pixels("y")
            operand(fields, "x", None)

    def text(self) -> str:
        return f"hand out {self.x}"


def refuse_first(step: Step, facts: Facts) -> str | None:
    shape, dim = facts.shape(step.args[0]), step.kwargs.get("dim")
    if not (dim is None or type(dim) is int) or not shape:
        return "its dimension is not known"
    return _too_long(math.prod(shape) if dim is None else shape[dim]) or refuse_reduce(step, facts)


def _too_long(length: int) -> str | None:
    return f"its rows have more than {LONGEST} elements" if length > LONGEST else None


def plan_first(step: Step, planner: Planning) -> None:
    reduced(First, step, planner)


def refuse_order(step: Step, facts: Facts) -> str | None:
    shape, dim, count = facts.shape(step.args[0]), step.kwargs.get("dim", -1), step.kwargs.get("k", 0)
    if type(dim) is not int or not shape:
        return "its dimension is not known"
    if not (type(count) is int or facts.is_number(count)):
        return "how many it takes is computed at run time"
    return _too_long(shape[dim]) or refuse_rows(replace(step, kwargs={}), facts)


def plan_order(step: Step, planner: Planning) -> None:
    """The places, and the elements that stand there."""
    x, label, settings = planner.operand(step.args[0]), planner.label(step), step.kwargs
    dim, rank, codes = settings.get("dim", -1), planner.rank(x), planner.codes.get(x)
    dim = dim - rank if dim >= 0 else dim
    largest = bool(settings.get("largest", True) if step.op == "topk" else settings.get("descending", False))
    count = settings["k"] if step.op == "topk" else None
    count = f"%{planner.value(count)}" if is_value(count) else count
    alone = step.op == "argsort"
    places = planner.result(step)[0] if alone else f"{step.out}.places"
    planner.add(Order(places, label, x, dim, codes, None, count, largest))
    if not alone:
        planner.add(Bundle(step.out, label, (planner.add(Take(f"{step.out}.values", label, x, places, dim, codes)), places)))
