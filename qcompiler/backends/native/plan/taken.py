"""Elements of a value at places that are found at run time: gather, index_select. Where sizes or constants give the places, see pick.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from qcompiler.backends.native.plan.by_number import ByNumber
from qcompiler.backends.native.plan.order import LONGEST, Take
from qcompiler.backends.native.plan.pick import on_codes
from qcompiler.backends.native.plan.place import Axes, Place
from qcompiler.backends.native.plan.planning import STEPPED, Facts, Planning, move_fault
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.shape import View
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.steps import Step, is_value

TAKING = ("gather", "index_select")


@dataclass(frozen=True, eq=False)
class Taken(Take, ByNumber):
    """Of each row of x along a dimension the elements at these places. `source`: what gives the places, seen in any shape."""

    source: str = ""

    @property
    def numbers(self) -> str:
        return self.at

    def shape(self, sizes: Sizes) -> Axes:
        """Places may be fewer than rows along the other dimensions, as torch has it, and not more."""
        x, at = list(sizes.shape(self.x)), list(super().shape(sizes))
        x[self.dim] = at[self.dim]
        if len(x) != len(at) or any(isinstance(n, int) and isinstance(m, int) and n < m for n, m in zip(x, at, strict=True)):
            raise ValueError(f"places of shape {tuple(at)} in a value of shape {sizes.shape(self.x)}")
        return tuple(at)

    @property
    def meaning(self) -> str:
        return "places in rows of elements"

    def reach(self, sizes: Sizes) -> int:
        return min(sizes.shape(self.x)[self.dim], LONGEST)

    def of_what(self, reach: int) -> str:
        return f"a row of {reach} elements"

    def place(self, sizes: Sizes) -> Place:
        self.check_numbers(sizes)
        return super().place(sizes)


@dataclass(frozen=True, eq=False)
class Selected(Taken):
    """Of all rows the elements at the same places, which are spread over the rows."""

    def by_sample(self, samples: Samples) -> bool:
        return samples.holds((self.x,)) and self.at not in samples.names and samples.rank(self.x) > -self.dim

    def shape(self, sizes: Sizes) -> Axes:
        shape = list(sizes.shape(self.x))
        shape[self.dim] = sizes.shape(self.at)[self.dim]
        return tuple(shape)

    def place(self, sizes: Sizes) -> Place:
        self.check_numbers(sizes)
        return self.placed_as(sizes.place(self.x), sizes)


def _along(places: Tensor, dim: int) -> Tensor:
    """(n) as (n, 1, 1, ...), with which it lies along dimension `dim` from the end."""
    return places.reshape(-1, *(1,) * (-dim - 1))


def refuse_taken(step: Step, facts: Facts) -> str | None:
    x, dim, index = step.args[0], step.kwargs.get("dim"), step.kwargs.get("index")
    if fault := move_fault(x, facts):
        return fault
    if type(dim) is not int:
        return "its dimension is computed at run time"
    if not is_value(index) or not facts.is_whole(index):
        return "its places are of another dtype"
    if not 1 <= facts.rank(x) <= STEPPED:
        return f"its input has {facts.rank(x)} dimensions"
    if facts.rank(index) != (facts.rank(x) if step.op == "gather" else 1):
        return f"its places have {facts.rank(index)} dimensions"
    length, reach = facts.row_length(index), facts.shape(x)[dim]
    if length is not None and length > reach:
        return f"its places are those among {length} elements, and its rows have {reach}"
    return None


def plan_taken(step: Step, planner: Planning) -> None:
    x, at, label = planner.operand(step.args[0]), planner.operand(step.kwargs["index"]), planner.label(step)
    dim = step.kwargs["dim"] % planner.rank(x) - planner.rank(x)
    (out, codes), given, source, kind = planner.result(step), planner.codes.get(x), planner.source_of(at), Taken
    if step.op == "index_select":
        at, kind = planner.add(View(f"{step.out}.along", label, at, step.op, (), {}, partial(_along, dim=dim))), Selected
    made = planner.add(kind(out if codes is None else f"{out}.floats", label, x, at, dim, given, source))
    if codes is not None:
        on_codes(out, step, planner, made, codes)
