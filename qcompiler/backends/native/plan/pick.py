"""Copies by lists of places (places.py): a pad, a roll, a flip, a pick. What other ops move is a view (shape.py, rearrange.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from qcompiler.backends.native.emit.layer_code import LayerCode
from qcompiler.backends.native.plan.codes import Codes, requantized, same_codes
from qcompiler.backends.native.plan.float_pointwise import FloatMap
from qcompiler.backends.native.plan.layer import Bound, Layer, Lies, OfOne, Pixels
from qcompiler.backends.native.plan.place import Axes, Place
from qcompiler.backends.native.plan.places import ALONG_AXES, OUTSIDE, Indices, apart_of, flat
from qcompiler.backends.native.plan.planning import Facts, Planning, move_fault
from qcompiler.backends.native.plan.pointwise import Map
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.steps import Step, is_value, leaves
from qcompiler.ir.nested import rewrite
from qcompiler.ops.table import OPS

FLAT = ("gather", "tril", "triu")  # each element by itself, where no axis has a list of its own
MOST_AXES = 5


@dataclass(frozen=True, eq=False)
class Pick(OfOne):
    """`op` with `args` and `kwargs` behind x; tensors among them are lists of places. `fill`: the code or float of what comes from
    nowhere.
    """

    op: str
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    fill: float
    floats: bool = False

    def axes(self, sizes: Sizes) -> list[Indices]:
        """Which element of x along each axis of the result, where each axis has a list of its own."""
        return ALONG_AXES[self.op](sizes.shape(self.x), *sizes.arguments(self.args), **sizes.arguments(self.kwargs))

    @property
    def by_axes(self) -> bool:
        """Whether each axis has a list of its own; roll and repeat_interleave without dimensions see x as one row."""
        alone = {"roll": "dims", "repeat_interleave": "dim"}.get(self.op)
        return self.op in ALONG_AXES and (alone is None or self.kwargs.get(alone) not in (None, (), []))

    @property
    def lies_anywhere(self) -> bool:
        return self.by_axes  # else its elements are one row

    def by_sample(self, samples: Samples) -> bool:
        """Whether it takes the samples as they come, and does the same to each."""
        if not self.by_axes:
            return False
        (first, *whole), (few, *part) = self.axes(samples.whole), self.axes(samples.part)
        in_order = all(np.array_equal(at, range(len(at))) for at in (first, few))
        return in_order and all(map(np.array_equal, whole, part))

    def _elements(self, sizes: Sizes) -> Tensor:
        return flat(sizes.shape(self.x), OPS.rows[self.op].fn, *sizes.arguments(self.args), **sizes.arguments(self.kwargs))

    def lies(self, known: Lies) -> str | None:
        return known.get(self.x) if self.by_axes else "rows"

    def shape(self, sizes: Sizes) -> Axes:
        arguments = sizes.shape(self.x), sizes.arguments(self.args), sizes.arguments(self.kwargs)
        if any(map(_is_symbol, leaves(arguments))):  # lists of places would hold the sizes of an export fixed
            return _shape_of(apart_of if self.op == "apart" else OPS.rows[self.op].fn, *arguments)
        return tuple(map(len, self.axes(sizes))) if self.by_axes else tuple(self._elements(sizes).shape)

    def place(self, sizes: Sizes) -> Place:
        rank, given = len(sizes.shape(self.out)), sizes.place(self.x).order
        more = rank - len(given)
        order = (*range(more), *(d + more for d in given)) if self.by_axes else tuple(range(rank))
        return sizes.new(self.out, order, 4 if self.floats else 1)

    def bind(self, sizes: Sizes) -> Bound:
        x, y = sizes.place(self.x), sizes.place(self.out)
        lists = self._along(x, y, sizes) if self.by_axes else [_Axis(_offsets(self._elements(sizes), x), y.size)]
        joined = _joined(lists, y.size)
        if len(joined) > MOST_AXES:
            raise ValueError("a copy by places in more than five dimensions")
        joined = [_Axis(np.zeros(1, np.int64), 0)] * (MOST_AXES - len(joined)) + joined
        lengths, strides = tuple(len(axis.at) for axis in joined), tuple(axis.stride for axis in joined)
        where = Pixels(y, lengths, strides[:4])  # type: ignore[arg-type]
        return Bound([where, Pixels(x, (1,) * 5, (0,) * 4)], maps=[axis.at for axis in joined])

    def _along(self, x: Place, y: Place, sizes: Sizes) -> list[_Axis]:
        found, more = self.axes(sizes), len(y.shape) - len(x.shape)
        strides = (0,) * more + x.strides
        return [_Axis(np.where(found[d] == OUTSIDE, OUTSIDE, found[d] * strides[d]), y.strides[d]) for d in y.order]

    def code(self, to: LayerCode) -> None:
        with to.call("pick") as fields:
            fields.pixels("y")
            fields.start("x")
            fields.maps("at", MOST_AXES)
            fields.fill("fill", self.fill, self.floats)
            fields.plain(size=4 if self.floats else 1)
        to.halo(self.out)

    def text(self) -> str:
        return f"{self.op} {self.x}"


def _is_symbol(leaf: object) -> bool:
    """Whether it is a size that is no number yet, or a tensor without data."""
    return isinstance(leaf, (torch.SymInt, FakeTensor)) or (isinstance(leaf, Tensor) and leaf.device.type == "meta")


def _shape_of(function: Callable[..., Tensor], given: Axes, args: Sequence[object], kwargs: Mapping[str, object]) -> Axes:
    """The shape of a result as torch says it of tensors without data."""
    args, kwargs = rewrite((tuple(args), dict(kwargs)), lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf)
    return tuple(function(torch.empty(given, device="meta"), *args, **kwargs).shape)


@dataclass(frozen=True, eq=False)
class _Axis:
    """Bytes from the start of x for each index, or OUTSIDE; `stride`: bytes from one index of the result to the next."""

    at: Indices
    stride: int

    @property
    def step(self) -> int | None:
        """The bytes from one element of x to the next, where that is the same for all and none is outside."""
        if len(self.at) < 2:
            return 0 if len(self.at) and self.at[0] == 0 else None
        steps = np.diff(self.at)
        even = self.at[0] == 0 and steps[0] > 0 and bool((steps == steps[0]).all())
        return int(steps[0]) if even else None


def _joined(axes: list[_Axis], size: int) -> list[_Axis]:
    """Without axes of one element, and neighbours that both sides step over evenly as one. The elements of the last lie side by side."""
    found: list[_Axis] = []
    for axis in axes:
        if len(axis.at) == 1 and axis.at[0] == 0:
            continue
        outer = found[-1] if found else None
        step = axis.step
        if outer is not None and step and outer.step == step * len(axis.at) and outer.stride == axis.stride * len(axis.at):
            found[-1] = _Axis(np.arange(len(outer.at) * len(axis.at), dtype=np.int64) * step, axis.stride)
        else:
            found.append(axis)
    if not found or found[-1].stride != size:
        found.append(_Axis(np.zeros(1, np.int64), size))
    return found


def _offsets(elements: Tensor, x: Place) -> Indices:
    """Bytes from the start of x for each element of a result, in its order; OUTSIDE where its number is 0."""
    numbers = elements.reshape(-1).numpy() - 1
    found = np.zeros(len(numbers), np.int64)
    rest = np.maximum(numbers, 0)
    for n, stride in zip(reversed(x.shape), reversed(x.strides), strict=True):
        found += rest % max(n, 1) * stride
        rest = rest // max(n, 1)
    return np.where(numbers < 0, OUTSIDE, found)


def refuse_pick(step: Step, facts: Facts) -> str | None:
    if fault := move_fault(step.args[0], facts):
        return fault
    if not 1 <= facts.rank(step.args[0]) <= MOST_AXES:
        return f"its input has {facts.rank(step.args[0])} dimensions"
    given = [leaf for leaf in leaves((step.args[1:], step.kwargs)) if isinstance(leaf, str) and is_value(leaf)]
    if not all(facts.is_number(leaf) or facts.is_known(leaf) for leaf in given):
        return "its places are computed at run time"
    return None


def on_result(step: Step, planner: Planning) -> tuple[str, str, Codes | None]:
    """Name and codes of what a step makes, and its first argument on these codes; None: both are floats."""
    x = planner.operand(step.args[0])
    (out, codes), given = planner.result(step), planner.codes.get(x)
    if codes is None:
        return out, x, given
    return out, x if lies_on(given, codes) else on_codes(f"{out}.codes", step, planner, x, codes), codes


def lies_on(given: Codes | None, codes: Codes | None) -> bool:
    """Whether a value of these codes needs no other ones; None: floats."""
    return codes is None or (given is not None and same_codes(given, codes))


def on_codes(name: str, step: Step, planner: Planning, x: str, codes: Codes) -> str:
    """A value on other codes than its own, or of floats."""
    given = planner.codes.get(x)
    if given is None:
        return planner.add(FloatMap(name, planner.label(step), x, "QC_COPY", (), None, codes), codes)
    return planner.add(Map(name, planner.label(step), x, requantized(given, codes), "codes"), codes)


def plan_pick(step: Step, planner: Planning) -> None:
    out, x, codes = on_result(step, planner)
    given = step.kwargs.get("value") if step.op == "pad" else None
    real = 0.0 if given is None else float(given)
    fill: float = real if codes is None else int(codes.of(torch.tensor(real)))
    if codes is not None and planner.result(step)[1] is None and real != codes.floats()[int(fill)]:  # a real number that no code means
        x, fill, codes = planner.add(FloatMap(f"{out}.floats", planner.label(step), x, "QC_COPY", (), codes, None)), real, None
    args, kwargs = (planner.with_tensors(part) for part in (step.args[1:], dict(step.kwargs)))
    planner.add(Pick(out, planner.label(step), x, step.op, args, kwargs, fill, codes is None), codes)


@dataclass(frozen=True)
class Padded:
    """A value with zero points around it that a convolution reads as its own padding: x, and how many stand before and after."""

    x: str
    before: Axes
    after: Axes


def without_pads(planner: Planning, argument: object, dims: int) -> Padded:
    """Behind which pads of a real 0 in the last `dims` dimensions a value stands."""
    name, before, after = planner.value(argument), (0,) * dims, (0,) * dims
    while (found := planner.made.get(name)) is not None and (pairs := _zero_pads(found, planner, dims)) is not None:
        assert isinstance(found, Pick)
        before, after = (tuple(a + pair[i] for a, pair in zip(have, pairs, strict=True)) for i, have in enumerate((before, after)))
        name = found.x
    return Padded(name, before, after)


def _zero_pads(layer: Layer, planner: Planning, dims: int) -> list[tuple[int, int]] | None:
    """(before, after) of each dimension of space where the layer is such a pad."""
    if not isinstance(layer, Pick) or layer.op != "pad" or layer.kwargs.get("mode", "constant") != "constant" or layer.floats:
        return None
    given = layer.kwargs.get("pad")
    if not isinstance(given, (tuple, list)) or not all(type(n) is int and n >= 0 for n in given):
        return None
    zero = layer.fill == planner.codes[layer.out].zero and same_codes(planner.codes[layer.x], planner.codes[layer.out])
    if not zero or len(given) > 2 * dims or not planner.rank(layer.x) > dims:
        return None
    pairs = [(given[i], given[i + 1]) for i in range(len(given) - 2, -1, -2)]
    return [(0, 0)] * (dims - len(pairs)) + pairs
