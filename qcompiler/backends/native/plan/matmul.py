"""Products of two values: matrices of floats in the panels that kernels/matmul.h wants."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from qcompiler.backends.native.emit.layer_code import LayerCode
from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.float_pointwise import FloatMap
from qcompiler.backends.native.plan.floats import as_pixels, operand, result, width
from qcompiler.backends.native.plan.layer import Bound, Layer, OfOne, Pixels, merged
from qcompiler.backends.native.plan.place import Axes, Place, spread_shape
from qcompiler.backends.native.plan.planning import Facts, Planning, turns
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.steps import Step

COLUMNS = 16  # QC_COLUMNS
MOST_DIMS = 5  # of the operands of what has no form for more: a matrix, and three axes of matrices
MOST_MATRICES = 8  # of a product's operands
NO_PIXELS = ((1, 1, 1, 1, 1), (0, 0, 0, 0))  # of panels, which are stepped through by matrix
MOST_AXES = 3  # of matrices, where neighbours over which both operands go alike are one


@dataclass(frozen=True, eq=False)
class Pack(OfOne):
    """x (*batch, K, N) as (*batch, ceil(N / 16), K, 16); what is missing in the last panel is 0."""

    x_codes: Codes | None

    @property
    def lies_anywhere(self) -> bool:
        return False

    def by_sample(self, samples: Samples) -> bool:
        return samples.rank(self.x) > 2

    def shape(self, sizes: Sizes) -> Axes:
        *batch, rows, columns = sizes.shape(self.x)
        return (*batch, -(-columns // COLUMNS), rows, COLUMNS)

    @property
    def steps_through(self) -> bool:
        return True

    def place(self, sizes: Sizes) -> Place:
        return sizes.new(self.out, tuple(range(len(sizes.shape(self.out)))), 4)

    def bind(self, sizes: Sizes) -> Bound:
        x, y = sizes.place(self.x), sizes.place(self.out)
        shape, axes = x.shape, list(zip(x.shape[:-2], x.strides[:-2], strict=True))
        if len(axes) > MOST_AXES:
            axes = [(n, stride) for n, (stride,) in merged(shape[:-2], [x.strides[:-2]])]
        axes = [(1, 0)] * (MOST_AXES - len(axes)) + axes
        sizes_, strides = (*(n for n, _ in axes), *shape[-2:]), (*(s for _, s in axes), x.strides[-2])
        return Bound([Pixels(x, sizes_, strides), Pixels(y, (1, 1, 1, 1, 1), (0, 0, 0, 0))], spread=[x.strides[-1]])  # type: ignore[arg-type]

    def cost(self, sizes: Sizes) -> int:
        return math.prod(sizes.shape(self.out)) // 2

    def code(self, to: LayerCode) -> None:
        with to.call("pack") as fields:
            operand(fields, "x", self.x_codes)
            fields.floats("y")

    def text(self) -> str:
        return f"panels of {self.x}"


def matrix_steps(place: Place, shape: Axes) -> Place:
    """The packed operand as one of a result of `shape`, its strides counted in matrices: 0 where one is shared."""
    batch = place.shape[:-3]
    strides, step = [0] * len(batch), 1
    for d in reversed(range(len(batch))):
        strides[d], step = step, step * batch[d]
    own = Place(batch, tuple(strides), place.offset, place.buffer, 1).spread(shape[:-2])
    return Place(tuple(shape), (*own.strides, 0, 0), place.offset, place.buffer, 1)


def by_matrix(values: Sequence[str], panels: Sequence[str], out: str, samples: Samples) -> bool:
    """Whether a product keeps samples apart. A row of it reads all of a packed matrix: samples of what is packed must be matrices, and
    where samples of the result are matrices, other packed values are spread over them. Packed values have a dimension more.
    """
    rank = samples.rank(out)

    def fits(name: str) -> bool:
        same = samples.rank(name) == rank + 1
        return rank > 2 and same if name in samples.names else rank == 2 or not same or samples.part.shape(name)[0] == 1

    return samples.may_spread(values, out) and all(map(fits, panels))


def matrices(places: Sequence[Place], shared: Set[int]) -> list[Pixels]:
    """Values of (*batch, M, N) as pixels of n * d * h matrices with w = M. Axes of the batch along which the values number `shared` stay
    where they are, and whose rows the others pass evenly, become rows: M is larger, with fewer matrices. Empty: none do.
    """
    rank = len(places[0].shape)
    axes = merged(places[0].shape[:-2], [p.strides[: rank - 2] for p in places])
    rows = (places[0].shape[-2], tuple(p.strides[-2] for p in places))

    def evenly(i: int, outer: int, inner: int) -> bool:
        return outer == (0 if i in shared else inner * rows[0])

    while shared and axes and all(evenly(i, outer, inner) for i, (outer, inner) in enumerate(zip(axes[-1][1], rows[1], strict=True))):
        rows = (rows[0] * axes.pop()[0], rows[1])
    if len(axes) > MOST_AXES:
        raise ValueError("matrices in more than three dimensions")
    axes = [(1, (0,) * len(places))] * (MOST_AXES - len(axes)) + axes
    return as_pixels(places, [*axes, rows], rank - 1)


@dataclass(frozen=True, eq=False)
class MatMul(Layer):
    """a (*batch, M, K), floats with elements side by side, times b, packed."""

    a: str
    b: str
    columns: str  # the value that was packed, for its size
    codes: Codes | None

    @property
    def lies_anywhere(self) -> bool:
        return False

    @property
    def steps_through(self) -> bool:
        return True

    @property
    def reads(self) -> tuple[str, ...]:
        return self.a, self.b

    def by_sample(self, samples: Samples) -> bool:
        return by_matrix((self.a,), (self.b,), self.out, samples)

    def right(self, sizes: Sizes) -> Axes:
        """The shape of what b was packed from."""
        return sizes.shape(self.columns)

    def shape(self, sizes: Sizes) -> Axes:
        a, b = sizes.shape(self.a), self.right(sizes)
        if a[-1] != b[-2]:
            raise ValueError(f"a product of {a} and {b}")
        return (*spread_shape(a[:-2], b[:-2]), a[-2], b[-1])

    def place(self, sizes: Sizes) -> Place:
        return sizes.new(self.out, tuple(range(len(sizes.shape(self.out)))), width(self.codes))

    def bind(self, sizes: Sizes) -> Bound:
        y, a, b = sizes.place(self.out), sizes.place(self.a), sizes.place(self.b)
        a = a.spread((*y.shape[:-1], a.shape[-1]))
        py, pa, pb = matrices((y, a, matrix_steps(b, y.shape)), {2})
        return Bound([pa, Pixels(b, *NO_PIXELS), py], strides=[(*pb.strides[:3], 0, 0)])

    def cost(self, sizes: Sizes) -> int:
        return math.prod(sizes.shape(self.out)) * sizes.shape(self.a)[-1] // 40

    def code(self, to: LayerCode) -> None:
        with to.call("matmul") as fields:
            fields.pixels("a")
            fields.floats("b")
            result(fields, "y", self.codes)
            fields.strides("b_of")

    def text(self) -> str:
        return f"matmul {self.a}, {self.columns}"


def rank_fault(step: Step, facts: Facts, count: int, most: int) -> str | None:
    for argument in step.args[:count]:
        if not (facts.is_codes(argument) or facts.is_floats(argument)):
            return "one of its operands is not float32"
        if not 2 <= facts.rank(argument) <= most:
            return f"one of its operands has {facts.rank(argument)} dimensions"
    return None


def refuse_matmul(step: Step, facts: Facts) -> str | None:
    if step.kwargs.get("bounds") is not None:
        return "its sums are bounded"
    batches = [facts.shape(argument)[:-2] for argument in step.args[:2]]
    many = max(map(len, batches)) > MOST_AXES and turns(batches) >= MOST_AXES
    fault = rank_fault(step, facts, 2, MOST_MATRICES)
    return fault or ("its matrices are spread over one another in too many dimensions" if many else None)


def float_rows(argument: Any, planner: Planning) -> str:
    """A value as floats whose last dimension lies side by side."""
    x = planner.operand(argument)
    codes = planner.codes.get(x)
    if codes is not None:
        x = planner.add(FloatMap(f"{x}.as_floats.{len(planner.layers)}", x, x, "QC_COPY", (), codes))
    return planner.rows(f"%{x}")


def packed(x: str, planner: Planning) -> str:
    return planner.add(Pack(f"{x}.panels.{len(planner.layers)}", x, x, planner.codes.get(x)))


def plan_matmul(step: Step, planner: Planning) -> None:
    a, b = float_rows(step.args[0], planner), planner.operand(step.args[1])
    out, codes = planner.result(step)
    planner.add(MatMul(out, planner.label(step), a, packed(b, planner), b, codes))
