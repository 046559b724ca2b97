"""Which dimensions of a graph's inputs may change, tried out, and what they are called.

A dimension is changed alone and with others; the graph must run at each. So what a model holds fixed (a view to 1024 columns, a table of
positions) is found with the node that says so, and a model that takes multiples of 32 alone gets a dimension of that step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from qcompiler.stages.size_runs import Found, NotThisSize, Place, Runner, Unknown

STEPS = (1, 2, 4, 8, 16, 32, 64)
OFFSETS = (3, 5, 10, 16)  # in steps: odd and even ones, so that what a stride leaves over shows


@dataclass(frozen=True)
class Dim:
    """A dimension of inputs that may change: `example + k * step`. `places`: (input, axis), which all have this size."""

    name: str
    example: int
    step: int
    places: tuple[Place, ...]

    @property
    def far(self) -> tuple[int, ...]:
        """Offsets to about 1.5, 2 and 3 times the example's size: what is a constant only nearby changes there."""
        double = -(-self.example // self.step)
        return double // 2 + 1, double + 1, 2 * double + 33

    def sizes(self, offset: int) -> dict[Place, int]:
        return dict.fromkeys(self.places, self.example + offset * self.step)


Axis = tuple[Place, int, str, int]  # place, example, dtype, rank
Runs = list[tuple[dict[Place, int], dict[fx.Node, Found]]]


def role(axis: Axis) -> str:
    """What a dimension is called by its position, the number of dimensions and the dtype of its tensor."""
    (_, index), _, dtype, rank = axis
    if index == 0 and rank > 1:
        return "batch"
    if rank >= 4:
        return ("channels", *("depth", "height", "width")[-(rank - 2) :])[index - 1] if rank < 6 else f"axis{index}"
    if rank == 3:
        return ("length", "features")[index - 1]
    return "features" if rank == 2 and "float" in dtype else "length"


class Search:
    """Finds the dimensions, and keeps the runs that it made."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.base = runner.run({})
        self.runs: Runs = [({}, self.base)]
        self.fixed: dict[Place, str] = {}

    def alone(self) -> list[Dim]:
        """The dimensions each of which may change while the others do not."""
        axes = list(self.runner.places())
        found: list[Dim] = []
        for axis in axes:
            if axis[0] not in {place for dim in found for place in dim.places}:
                dim = self._dim(axis, [other for other in axes if not any(other[0] in d.places for d in found)])
                found += [dim] if dim is not None else []
        return _named(found, axes)

    def dim(self, place: Place) -> Dim | None:
        """The dimension that one axis of an input belongs to, by a few runs alone; None, with the reason in `fixed`, where it may not
        change."""
        axes = list(self.runner.places())
        axis = next((axis for axis in axes if axis[0] == place), None)
        if axis is None:
            self.fixed[place] = "there is no such dimension of an input"
            return None
        return self._fitting(axis, axes)

    def _dim(self, axis: Axis, left: Sequence[Axis]) -> Dim | None:
        """The dimension that an axis belongs to, whose runs are kept; None, with the reason noted, where it may not change."""
        dim = self._fitting(axis, left)
        return dim if dim is not None and self._keep(dim) else None

    def _fitting(self, axis: Axis, left: Sequence[Axis]) -> Dim | None:
        """The first step and places that the graph takes; None, with the reason noted, where nothing but the example's size will do."""
        alike = [other for other in left if other[1] == axis[1]]
        kin = [o[0] for o in alike if o[0] == axis[0] or (role(o) == role(axis) and o[0][0] != axis[0][0])]
        ways = list(dict.fromkeys((tuple(kin), (axis[0],), tuple(o[0] for o in alike))))
        for places in ways:
            for step in STEPS:
                dim = Dim(role(axis), axis[1], step, places)
                if all(self._runs(dim.sizes(offset), axis[0]) for offset in OFFSETS[:2]):
                    return dim
        return None

    def _runs(self, sizes: Mapping[Place, int], place: Place) -> bool:
        try:
            self._run(sizes)
        except NotThisSize as error:
            self.fixed.setdefault(place, str(error))
            return False
        self.fixed.pop(place, None)
        return True

    def takes(self, sizes: Mapping[Place, int]) -> bool:
        """Whether the graph runs at these sizes."""
        try:
            self._run(sizes)
        except NotThisSize:
            return False
        return True

    def _run(self, sizes: Mapping[Place, int]) -> dict[fx.Node, Found]:
        return self.runner.run(sizes, lambda node: isinstance(self.base[node], Unknown))

    def _keep(self, dim: Dim) -> bool:
        """Keeps the runs of a dimension that changes alone."""
        try:
            made = [(sizes := dim.sizes(offset), self._run(sizes)) for offset in OFFSETS]
        except NotThisSize as error:
            self.fixed[dim.places[0]] = str(error)
            return False
        self.runs += made
        self._may_run(dim.sizes(offset) for offset in dim.far)
        return True

    def _may_run(self, far: Iterable[dict[Place, int]]) -> None:
        """Keeps the runs at sizes that a model need not take: a table of positions ends somewhere."""
        for sizes in far:
            try:
                self.runs.append((sizes, self._run(sizes)))
            except NotThisSize:
                continue

    def together(self, dims: Sequence[Dim]) -> list[Dim]:
        """Those of the dimensions that may change at once, each by another number: the last is fixed while that does not run. All others
        are held at the example's sizes."""
        left, places = list(dims), {place for dim in dims for place in dim.places}
        self.runs = [(sizes, found) for sizes, found in self.runs if sizes.keys() <= places]
        while left:
            try:
                made = []
                for turn in range(3):
                    sizes = {p: s for i, dim in enumerate(left) for p, s in dim.sizes((7 * turn + 5 * i + 3) % 17 + turn + 1).items()}
                    made.append((sizes, self._run(sizes)))
                self.runs += made
                self._may_run(_far_together(left))
                return left
            except NotThisSize as error:
                last = left.pop()
                self.fixed |= dict.fromkeys(last.places, f"not together with {', '.join(d.name for d in left)}: {error}")
                self.runs = [(sizes, found) for sizes, found in self.runs if not any(place in sizes for place in last.places)]
        return left


def _far_together(dims: Sequence[Dim]) -> Iterator[dict[Place, int]]:
    """All dimensions far from the example, each by another factor."""
    for turn in range(3):
        yield {p: s for i, dim in enumerate(dims) for p, s in dim.sizes(dim.far[1] * (1 + (i + turn) % 3) + 2 * i + turn).items()}


def _named(dims: list[Dim], axes: Sequence[Axis]) -> list[Dim]:
    """Names apart: of two dimensions of one role the second has its input's name in front, or its axis behind."""
    named: list[Dim] = []
    of = {axis[0]: axis for axis in axes}
    for dim in dims:
        alone = [d for d in dims if d.places[0][0] == dim.places[0][0] and d.name != "batch"]
        plain = "length" if dim.name == "features" and len(alone) == 1 and of[dim.places[0]][3] == 3 else dim.name
        name, source = plain, dim.places[0]
        if name in {d.name for d in named}:
            name = f"{source[0].replace('.', '_')}_{plain}"
        while name in {d.name for d in named}:
            name += f"_{source[1]}"
        named.append(replace(dim, name=name))
    return named
