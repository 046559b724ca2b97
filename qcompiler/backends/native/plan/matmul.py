"""Products of two values, and attention: matrices of floats in the panels that kernels/matmul.h wants."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch

from qcompiler.backends.native.emit.layer_code import LayerCode
from qcompiler.backends.native.float_ops import VISIBLE
from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.float_pointwise import FloatMap
from qcompiler.backends.native.plan.floats import as_pixels, operand, result, width
from qcompiler.backends.native.plan.layer import Bound, Layer, OfOne, Pixels, merged
from qcompiler.backends.native.plan.masks import Where
from qcompiler.backends.native.plan.place import Axes, Place, spread_shape
from qcompiler.backends.native.plan.planning import Facts, Planning, turns
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.shape import View
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.steps import Step, is_value

COLUMNS = 16  # QC_COLUMNS
WIDEST = 256  # QC_WIDEST
MOST_DIMS = 5  # of an attention's operands: a matrix, and three axes of matrices
MOST_MATRICES = 8  # of a product's operands
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
        return Bound([pa, Pixels(b, *_NONE), py], strides=[(*pb.strides[:3], 0, 0)])

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


_NONE: Any = ((1, 1, 1, 1, 1), (0, 0, 0, 0))


@dataclass(frozen=True, eq=False)
class Attention(Layer):
    """softmax(q k^T * scale + mask) v; k and v packed, q floats with elements side by side, all of the batch (*batch)."""

    q: str
    k: str
    v: str
    values: str  # what v was packed from, for its size
    mask: str | None
    mask_codes: Codes | None
    codes: Codes | None
    scale: float
    causal: bool

    @property
    def lies_anywhere(self) -> bool:
        return False

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.q, self.k, self.v, *([self.mask] if self.mask is not None else []))

    def by_sample(self, samples: Samples) -> bool:
        return by_matrix((self.q, *self.reads[3:]), (self.k, self.v), self.out, samples)

    def shape(self, sizes: Sizes) -> Axes:
        q, v, keys = sizes.shape(self.q), sizes.shape(self.values), sizes.shape(self.k)
        if v[-1] > WIDEST or q[-1] != keys[-2]:
            raise ValueError(f"attention of {q} and {v}")
        return (*spread_shape(q[:-2], v[:-2]), q[-2], v[-1])

    def place(self, sizes: Sizes) -> Place:
        """Queries outside of heads: the heads' results side by side are one row, as the next layer takes them."""
        rank = len(sizes.shape(self.out))
        order = (*range(rank - 3), rank - 2, rank - 3, rank - 1) if rank >= 3 else tuple(range(rank))
        return sizes.new(self.out, order, width(self.codes))

    def bind(self, sizes: Sizes) -> Bound:
        y, q, k, v = (sizes.place(name) for name in (self.out, self.q, self.k, self.v))
        keys = sizes.shape(self.values)[-2]
        q = q.spread((*y.shape[:-1], q.shape[-1]))
        given = [q, matrix_steps(k, y.shape), matrix_steps(v, y.shape)]
        if self.mask is not None:
            given.append(sizes.place(self.mask).spread((*y.shape[:-1], keys)))
        py, pq, pk, pv, *pm = matrices((y, *given), set())
        pixels = [pq, Pixels(k, *_NONE), Pixels(v, *_NONE), *pm, py]
        steps = [place.strides[-1] for place in given[3:]]
        return Bound(pixels, strides=[(*pk.strides[:3], 0, 0), (*pv.strides[:3], 0, 0)], spread=[*steps, keys])

    def cost(self, sizes: Sizes) -> int:
        return math.prod(sizes.shape(self.q)) * sizes.shape(self.values)[-2] // 15

    def code(self, to: LayerCode) -> None:
        with to.call("attention") as fields:
            fields.pixels("q")
            fields.floats("k", "v")
            if self.mask is not None:
                operand(fields, "mask", self.mask_codes)
            result(fields, "y", self.codes)
            fields.strides("k_of")
            fields.strides("v_of")
            fields.step("keys")
            fields.reals(scale=self.scale)
            fields.plain(causal=int(self.causal))

    def text(self) -> str:
        return f"attention {self.q}, {self.values}" + (" causal" if self.causal else "")


def _rank_fault(step: Step, facts: Facts, count: int, most: int) -> str | None:
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
    fault = _rank_fault(step, facts, 2, MOST_MATRICES)
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


def refuse_attention(step: Step, facts: Facts) -> str | None:
    kwargs = step.kwargs
    if kwargs.get("dropout_p", 0.0) != 0.0 or kwargs.get("enable_gqa", False):
        return "attention with dropout or grouped heads has no C form"
    if any(map(is_value, (kwargs.get("scale"), kwargs.get("is_causal")))):
        return "its settings are computed at run time"
    mask, visible = kwargs.get("attn_mask"), kwargs.get(VISIBLE)
    if mask is not None and not facts.is_floats(mask):
        return "its mask is not float32"
    if visible is not None and not facts.is_mask(visible):
        return "its mask is not bool"
    if max(facts.rank(mask), facts.rank(visible)) > MOST_DIMS:
        return f"its mask has more than {MOST_DIMS} dimensions"
    if facts.shape(step.args[2])[-1:] > (WIDEST,):
        return f"its values are wider than {WIDEST}"
    return _rank_fault(step, facts, 3, MOST_DIMS)


def _added(step: Step, planner: Planning) -> str | None:
    """What is added to the scores: the mask, or minus infinity where a mask of bools hides a key."""
    mask, visible = step.kwargs.get("attn_mask"), step.kwargs.get(VISIBLE)
    if visible is None:
        return None if mask is None else planner.operand(mask)
    seen, hidden = (planner.constant(f"{step.out}.{name}", torch.tensor(value)) for name, value in (("seen", 0.0), ("hidden", -math.inf)))
    return planner.add(Where(f"{step.out}.mask", planner.label(step), planner.operand(visible), seen, hidden, (None, None, None), None))


def plan_attention(step: Step, planner: Planning) -> None:
    q, label = float_rows(step.args[0], planner), planner.label(step)
    k, v = (planner.operand(argument) for argument in step.args[1:3])
    turned = planner.add(View(f"{step.out}.keys", label, k, "transpose", (), {"dim0": -2, "dim1": -1}), planner.codes.get(k))
    added = _added(step, planner)
    scale = step.kwargs.get("scale")
    scale = 1 / math.sqrt(planner.example.shape(q)[-1]) if scale is None else float(scale)
    out, codes = planner.result(step)
    mask_codes = None if added is None else planner.codes.get(added)
    planner.add(Attention(out, label, q, packed(turned, planner), packed(v, planner), v, added, mask_codes, codes, scale,
                          bool(step.kwargs.get("is_causal", False))))  # fmt: skip
