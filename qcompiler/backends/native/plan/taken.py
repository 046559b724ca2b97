"""Elements of a value at places that are found at run time: gather, index_select, x[at], x[rows, at]. Where sizes or constants give the
places, see pick.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from qcompiler.backends.native.plan.by_number import ByNumber
from qcompiler.backends.native.plan.order import LONGEST, Take
from qcompiler.backends.native.plan.pick import Pick, on_codes
from qcompiler.backends.native.plan.place import Axes, Place
from qcompiler.backends.native.plan.planning import STEPPED, Argument, Facts, Planning, move_fault
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.settled import Computed
from qcompiler.backends.native.plan.shape import View
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.steps import Step, is_tensor, is_value

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


@dataclass(frozen=True, eq=False)
class Indexed(Selected):
    """The same, of each row its own places, or of all rows the same; negative ones count from the end."""

    @property
    def from_end(self) -> bool:
        return True

    @property
    def meaning(self) -> str:
        return f"{super().meaning}, negative ones from the end"

    def by_sample(self, samples: Samples) -> bool:
        return Take.by_sample(self, samples) if self.at in samples.names else Selected.by_sample(self, samples)

    def shape(self, sizes: Sizes) -> Axes:
        x, at = sizes.shape(self.x), sizes.shape(self.at)
        if len(x) == len(at) > -self.dim and at[0] != x[0]:
            raise ValueError(f"places of {at[0]} rows in {x[0]} rows")
        return super().shape(sizes)


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
    if facts.rank(index) != (facts.rank(x) if step.op == "gather" else 1):
        return f"its places have {facts.rank(index)} dimensions"
    return _places_fault(x, dim, index, facts)


def _places_fault(x: Argument, dim: int, at: Argument, facts: Facts) -> str | None:
    if not dim < facts.rank(x) <= STEPPED:
        return f"its input has {facts.rank(x)} dimensions"
    length, reach = facts.row_length(at), facts.shape(x)[dim]
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


@dataclass(frozen=True)
class _Index:
    """x[:, ..., at] with `dim` dimensions before it, or x[rows, at]: of each of these rows its own elements."""

    dim: int
    at: Argument
    rows: Argument = None


def _index(step: Step, facts: Facts) -> _Index | None:
    """None for an index of another form."""
    entries = step.kwargs.get("index")
    entries = entries if isinstance(entries, tuple) else (entries,)
    picked = [i for i, entry in enumerate(entries) if entry != slice(None)]
    if picked == [0, 1]:
        rows, at = entries[:2]
        return _Index(1, at, rows) if _are_rows(rows, at, facts) else None
    return _Index(picked[0], entries[picked[0]]) if len(picked) == 1 and facts.rank(entries[picked[0]]) == 1 else None


def _are_rows(rows: Argument, at: Argument, facts: Facts) -> bool:
    """Whether an index is the numbers of rows, known before anything runs, with a place of each, or several side by side."""
    settled = (is_value(rows) and facts.is_known(rows)) or (is_tensor(rows) and facts.is_whole(rows))
    shape, places = facts.shape(rows), facts.shape(at)
    return settled and not facts.is_mask(rows) and shape == (places if len(places) == 1 else (*places[:1], 1)) and len(places) in (1, 2)


def refuse_indexed(step: Step, facts: Facts) -> str | None:
    """x[at] and x[rows, at]."""
    x, index = step.args[0], _index(step, facts)
    if index is None or not is_value(index.at) or facts.is_known(index.at) or not facts.is_whole(index.at):
        return "its places are computed at run time"
    return move_fault(x, facts) or _places_fault(x, index.dim, index.at, facts)


def plan_indexed(step: Step, planner: Planning) -> None:
    index, label, (out, codes) = _index(step, planner), planner.label(step), planner.result(step)
    assert index is not None
    x, at = planner.operand(step.args[0]), planner.operand(index.at)
    given, source, dim = planner.codes.get(x), planner.source_of(at), index.dim - planner.rank(x)
    if index.rows is not None:
        rows = planner.add(Computed(f"{step.out}.flat", label, "reshape", (planner.with_tensors(index.rows), (-1,)), {}))
        picked = {"dim": 0, "index": f"%{rows}"}
        x = planner.add(Pick(f"{step.out}.rows", label, x, "index_select", (), picked, 0, given is None), given)
    lies = partial(_in_rows if index.rows is not None else _along, dim=dim)
    at_of = planner.add(View(f"{step.out}.along", label, at, step.op, (), {}, lies))
    one = index.rows is not None and planner.rank(at) == 1
    made = out if codes is None and not one else f"{out}.floats"
    made = planner.add(Indexed(made, label, x, at_of, dim, given, source))
    if one:
        made = planner.add(View(f"{out}.one" if codes is not None else out, label, made, "select", (1, 0), {}))
    if codes is not None:
        on_codes(out, step, planner, made, codes)


def _in_rows(places: Tensor, dim: int) -> Tensor:
    """(n) as (n, 1, 1, ...), (n, k) as (n, k, 1, ...), with which it lies along dimension `dim` from the end, behind that of the rows."""
    return places.reshape(places.shape[0], -1, *(1,) * (-dim - 1))
