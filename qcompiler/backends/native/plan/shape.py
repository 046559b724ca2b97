"""Views, copies and joined values: what moves codes and computes nothing, and numbers made from sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.native.emit.layer_code import LayerCode
from qcompiler.backends.native.plan.codes import Codes, requantized, same_codes
from qcompiler.backends.native.plan.copies import copied
from qcompiler.backends.native.plan.float_pointwise import FloatMap
from qcompiler.backends.native.plan.layer import Bound, Layer, Lies, OfOne, in_common
from qcompiler.backends.native.plan.pick import on_result, plan_pick, refuse_pick
from qcompiler.backends.native.plan.place import Axes, Place
from qcompiler.backends.native.plan.planning import Facts, Planning, move_fault
from qcompiler.backends.native.plan.pointwise import Map
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.read import NUMBERS
from qcompiler.backends.native.steps import Step, is_value, leaves
from qcompiler.ops import functional as Q

# Functions of torch whose result shares memory with its argument; reshape and flatten do where they can.
VIEWS: Mapping[str, Callable[..., Any]] = {
    "reshape": Q.reshape, "flatten": torch.flatten, "unflatten": torch.unflatten, "permute": Q.permute, "transpose": torch.transpose,
    "squeeze": Q.squeeze, "unsqueeze": torch.unsqueeze, "narrow": torch.narrow, "select": torch.select, "chunk": torch.chunk,
    "split": Q.split, "tensor_split": Q.tensor_split, "unbind": torch.unbind, "getitem": Q.getitem, "expand": Q.expand,
    "diagonal": torch.diagonal, "unfold_dimension": Q.unfold_dimension,
}  # fmt: skip
SAME = ("contiguous", "identity", "detach", "dropout", "stochastic_depth")  # of these the result is the argument


@dataclass(frozen=True, eq=False)
class Number(Layer):
    """An integer, or a check of one: known before anything runs."""

    function: str
    args: tuple[Any, ...]

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    @property
    def asks(self) -> tuple[str, ...]:
        """Whose sizes it needs."""
        return tuple(leaf[1:] for leaf in leaves(self.args) if is_value(leaf))

    def shape(self, sizes: Sizes) -> Any:
        args = sizes.numbers(self.args)
        if self.function == "size":
            return args[0] if len(args) == 1 else args[0][args[1]]
        return len(args[0]) if self.function == "dim" else NUMBERS[self.function](*args)

    def stays(self, samples: Samples) -> bool:
        """A number of samples is one as the size of a view alone, whose shape tells whether it was."""
        whole, part = samples.whole.shapes[self.out], samples.part.shapes[self.out]
        return whole == part or (whole, part) == samples.counts

    def place(self, sizes: Sizes) -> Any:
        return None


@dataclass(frozen=True, eq=False)
class View(OfOne):
    """The same bytes under another shape, or one of several: nothing to compute. `function`: of the view; default: torch's for the op."""

    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    function: Callable[..., Any] | None = None

    def shape(self, sizes: Sizes) -> Any:
        given = sizes.shape(self.x)
        if given and isinstance(given[0], tuple):
            return given[self.kwargs["index"]]
        made = self.apply(torch.empty(given, dtype=torch.uint8, device="meta"), sizes)
        return tuple(made.shape) if isinstance(made, Tensor) else tuple(tuple(one.shape) for one in made)

    def apply(self, x: Tensor, sizes: Sizes) -> Any:
        return (self.function or VIEWS[self.op])(x, *sizes.numbers(self.args), **sizes.numbers(self.kwargs))

    def by_sample(self, samples: Samples) -> bool:
        return all(self._keeps_rows(sizes) for sizes in (samples.part, samples.whole))

    def _keeps_rows(self, sizes: Sizes) -> bool:
        """Whether each row of the result, along the first dimension, is a part of the same row of x."""
        given = sizes.shapes[self.x]
        if isinstance(given[0], tuple):
            return True
        made, step = self.apply(torch.empty(given, dtype=torch.uint8, device="meta"), sizes), math.prod(given[1:])
        return all(
            one.stride(0) == step
            and one.storage_offset() + sum((n - 1) * s for n, s in zip(one.shape[1:], one.stride()[1:], strict=True)) < step
            for one in ([made] if isinstance(made, Tensor) else made)
        )

    def place(self, sizes: Sizes) -> Any:
        given = sizes.places[self.x]
        if isinstance(given, tuple):
            return given[self.kwargs["index"]]
        made = self.apply(given.meta(), sizes)
        return given.viewed(made) if isinstance(made, Tensor) else tuple(given.viewed(one) for one in made)

    def text(self) -> str:
        return f"{self.op} {self.x}"


@dataclass(frozen=True, eq=False)
class Reshape(View):
    """A view where the memory can be seen so, else a copy that keeps together what becomes one dimension."""

    def place(self, sizes: Sizes) -> Place:
        given = sizes.place(self.x)
        seen = given.meta()
        made = self.apply(seen, sizes)
        if made.untyped_storage()._cdata == seen.untyped_storage()._cdata:
            return given.viewed(made)
        target = sizes.buffer(given.shape, joint_order(given, tuple(made.shape)), given.size)
        sizes.copies[self.out] = target
        return target.viewed(target.meta().view(made.shape))

    @property
    def owns(self) -> bool:
        return False

    def bind(self, sizes: Sizes) -> Bound:
        return copied(self, sizes)

    def code(self, to: LayerCode) -> None:
        to.copy()


@dataclass(frozen=True, eq=False)
class Cat(Layer):
    """Parts that have been made in their places."""

    parts: tuple[str, ...]
    dim: int

    @property
    def reads(self) -> tuple[str, ...]:
        return self.parts

    def lies(self, known: Lies) -> str | None:
        return in_common(self.reads, known)

    def by_sample(self, samples: Samples) -> bool:
        return self.dim > 0 and samples.holds(self.reads)

    def shape(self, sizes: Sizes) -> Axes:
        """torch's own cat of tensors without data imports its compiler, which takes seconds the first time."""
        first, *others = (sizes.shape(name) for name in self.parts)
        around = (first[: self.dim], first[self.dim + 1 :])
        if any((shape[: self.dim], shape[self.dim + 1 :]) != around for shape in others):
            raise ValueError(f"parts of sizes {[first, *others]} do not fit together along dimension {self.dim}")
        return (*around[0], sum([shape[self.dim] for shape in others], first[self.dim]), *around[1])

    def place(self, sizes: Sizes) -> Place:
        return sizes.place(self.out)

    def text(self) -> str:
        return f"cat {', '.join(self.parts)} along {self.dim}"


def joint_order(given: Place, shape: Axes) -> Axes:
    """The dimensions of `given`, slowest first: those that become one dimension of `shape` in their order, groups as they lie."""
    groups = _groups(given.shape, shape)
    return tuple(d for group in sorted(groups, key=lambda g: -max(given.strides[d] for d in g)) for d in group)


def _groups(old: Axes, new: Axes) -> list[list[int]]:
    """Neighbouring dimensions of `old` that cover the same elements as some dimensions of `new`."""
    groups: list[list[int]] = [[]]
    wanted, have, index = 1, 1, 0
    for dim, n in enumerate(old):
        groups[-1].append(dim)
        have *= n
        while wanted < have and index < len(new):
            wanted, index = wanted * new[index], index + 1
        if wanted == have and dim + 1 < len(old):
            groups.append([])
    return [group for group in groups if group]


def refuse_view(step: Step, facts: Facts) -> str | None:
    if step.op == "getitem" and not _is_view(step, facts):
        return refuse_pick(step, facts)
    if fault := move_fault(step.args[0], facts):
        return fault
    if any(isinstance(leaf, float) for leaf in leaves((step.args[1:], step.kwargs))):
        return "one of its arguments is no whole number"
    return None


def _is_view(step: Step, facts: Facts) -> bool:
    """Whether an index is made of numbers and slices alone; lists and tensors pick elements."""
    return all(_plain_index(i, facts) for i in _indices(step.kwargs.get("index")))


def _indices(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _plain_index(index: object, facts: Facts) -> bool:
    if isinstance(index, slice):
        return all(_plain_index(part, facts) for part in (index.start, index.stop, index.step))
    return index is None or index is Ellipsis or type(index) is int or (is_value(index) and facts.is_number(index))


def plan_view(step: Step, planner: Planning) -> None:
    if step.op == "getitem" and not _is_view(step, planner):
        plan_pick(step, planner)
        return
    out, x, _ = on_result(step, planner)
    if step.op in SAME:
        planner.alias[out] = x
        return
    kind = Reshape if step.op in ("reshape", "flatten") else View
    planner.add(kind(out, planner.label(step), x, step.op, step.args[1:], dict(step.kwargs)), planner.codes.get(x))


def plan_cat(step: Step, planner: Planning) -> None:
    out, codes = planner.result(step)
    names = [planner.operand(argument) for argument in step.args[0]]
    dim = step.kwargs.get("dim", 0) % planner.rank(names[0])
    parts: list[str] = []
    for index, name in enumerate(names):
        part = (
            name
            if codes is not None and planner.may_move(name, codes) and name not in parts and planner.lies_as(name, parts)
            else _piece(step, planner, f"{out}.{index}", (name, names[0]), codes)
        )
        planner.move(part, out, dim, tuple(parts))
        parts.append(part)
    planner.add(Cat(out, planner.label(step), tuple(parts), dim), codes)


def _piece(step: Step, planner: Planning, name: str, values: tuple[str, str], codes: Codes | None) -> str:
    """A copy of a value in its place, on the steps of the whole; it lies as the first part does."""
    x, first = values
    given = planner.codes.get(x)
    if codes is None or given is None:
        return planner.add(FloatMap(name, planner.label(step), x, "QC_COPY", (), given, codes))
    table = None if same_codes(given, codes) else requantized(given, codes)
    return planner.add(Map(name, planner.label(step), x if x == first else planner.like(f"%{x}", first), table, "part"), codes)


def refuse_cat(step: Step, facts: Facts) -> str | None:
    if not isinstance(step.args[0], (list, tuple)) or not all(facts.is_codes(a) or facts.is_floats(a) for a in step.args[0]):
        return "one of its parts is not float32"
    return None if type(step.kwargs.get("dim", 0)) is int else "its dimension is computed at run time"
