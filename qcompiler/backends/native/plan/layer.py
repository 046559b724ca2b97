"""What every layer answers, and the structs of the kernels as Python sees them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qcompiler.backends.native.emit.layer_code import LayerCode
from qcompiler.backends.native.plan.place import Axes, Place, spread_shape
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.sizes import Sizes


@dataclass(frozen=True)
class Pixels:
    """A qc_tensor: offset in a buffer of the arena, sizes n d h w c, byte strides of n d h w."""

    place: Place
    sizes: tuple[int, int, int, int, int]
    strides: tuple[int, int, int, int]


@dataclass(frozen=True)
class Moved:
    """A qc_copy: up to six axes, with the strides in bytes of where elements come from and where they go."""

    source: Place
    target: Place
    length: Axes
    from_strides: Axes
    to_strides: Axes
    size: int


@dataclass
class Bound:
    """What depends on the sizes of one layer, in the order in which its C reads it."""

    pixels: list[Pixels] = field(default_factory=list)
    moved: list[Moved] = field(default_factory=list)
    strides: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    spread: list[int] = field(default_factory=list)
    maps: list[NDArray[np.int64]] = field(default_factory=list)


Lies = Mapping[str, str | None]  # how values surely lie, by name


@dataclass(frozen=True)
class Layer(ABC):
    """`out`: the value that it makes; `label`: its nodes in the user's model, for text and comments."""

    out: str
    label: str

    @property
    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """The values that it takes."""

    @abstractmethod
    def shape(self, sizes: Sizes) -> Any:
        """The shape of its result, a tuple of shapes, or a number."""

    @abstractmethod
    def place(self, sizes: Sizes) -> Any:
        """Where its result lies."""

    def bind(self, sizes: Sizes) -> Bound:
        return Bound()

    def code(self, to: LayerCode) -> None:  # noqa: B027 - a layer that only renames has none
        """Writes the body of its C function; nothing for a layer that only renames."""

    def lies(self, known: Lies) -> str | None:
        """How its result surely lies, by how what it reads does: "pixels" (channels side by side), "rows" (the last dimension), or None."""
        return None

    @property
    def computes(self) -> bool:
        """Whether it has a C function."""
        return type(self).code is not Layer.code

    @property
    def owns(self) -> bool:
        """Whether it makes its result in memory of its own, at all sizes."""
        return self.computes

    @property
    def lies_anywhere(self) -> bool:
        """Whether it can make its result as a part of another value."""
        return True

    @property
    def steps_through(self) -> bool:
        """Whether its kernel steps through its operands in few dimensions: what has more is to lie with nothing between its elements."""
        return False

    @property
    def by_element(self) -> bool:
        """Whether its operands are spread over its result, an element of each for each of its own."""
        return False

    @property
    def can_add(self) -> bool:
        """Whether it can add another value to its result before it writes it."""
        return False

    @property
    def gives_places(self) -> bool:
        """Whether its result are places in rows: whole numbers, which torch has as int64."""
        return False

    @property
    def dtype(self) -> torch.dtype:
        """Of its result, where the caller gets it."""
        return torch.float32

    def by_sample(self, samples: Samples) -> bool:
        """Whether sample n of its result, along the first dimension, is made of sample n of its operands alone, and of constants."""
        return False

    def stays(self, samples: Samples) -> bool:
        """Of a layer that reads no value: whether its result, or number, at two numbers of samples means the same for each sample."""
        return False

    def cost(self, sizes: Sizes) -> int:
        """About how many nanoseconds it takes on one thread: what it reads and writes, at a few bytes a nanosecond."""
        names = (self.out, *self.reads)
        return sum(math.prod(sizes.shape(name)) for name in names) // 8 if self.computes else 0

    def text(self) -> str:
        """Its settings, for the plan's text."""
        return ""


@dataclass(frozen=True, eq=False)
class OfOne(Layer):
    """A layer that takes one value, and as a rule makes one of its shape."""

    x: str

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.x,)

    def shape(self, sizes: Sizes) -> Axes:
        return sizes.shape(self.x)


@dataclass(frozen=True, eq=False)
class OfTwo(Layer):
    """a op b, either spread over the other."""

    op: str
    a: str
    b: str

    @property
    def reads(self) -> tuple[str, ...]:
        return self.a, self.b

    @property
    def by_element(self) -> bool:
        return True

    def shape(self, sizes: Sizes) -> Axes:
        return spread_shape(sizes.shape(self.a), sizes.shape(self.b))

    def by_sample(self, samples: Samples) -> bool:
        return samples.may_spread(self.reads, self.out)

    def fullest(self, sizes: Sizes) -> Place | None:
        """The place of an operand that is spread over nothing."""
        shape = sizes.shape(self.out)
        return next((p for p in (sizes.place(self.a), sizes.place(self.b)) if p.shape == shape), None)


def in_common(names: Sequence[str], known: Lies) -> str | None:
    """How all of these values lie, where they do in one way."""
    found = {known.get(name) for name in names}
    return found.pop() if len(found) == 1 else None


def image(place: Place, dims: int) -> Pixels:
    """A value of (N, C, *space), or (C, *space), as pixels; `dims` dimensions are space."""
    shape, strides = place.shape, place.strides
    if len(shape) == dims + 1:
        shape, strides = (1, *shape), (0, *strides)
    space, pitches = (1,) * (3 - dims) + shape[2:], strides[2:]
    if not place.is_side_by_side(strides[1], shape[1]):
        raise ValueError("channels do not lie side by side")
    outer = [pitches[0] * space[3 - dims]] * (3 - dims) if dims else [shape[1] * place.size] * 3
    d, h, w = (*outer, *pitches)
    return Pixels(place, (shape[0], *space, shape[1]), (strides[0], d, h, w))  # type: ignore[arg-type]


def rows(*places: Place) -> list[Pixels]:
    """Values of (*, K), the same * in all, as pixels of K channels in one line, or in up to four dimensions where they are not evenly
    spaced in each.
    """
    for place in places:
        if not place.is_side_by_side(place.strides[-1], place.shape[-1]):
            raise ValueError("features do not lie side by side")
    axes = merged(places[0].shape[:-1], [place.strides[:-1] for place in places])
    if len(axes) > 4:
        raise ValueError("rows in more than four dimensions")
    found = []
    for index, place in enumerate(places):
        own = [(n, strides[index]) for n, strides in axes]
        outer = own[0][1] * own[0][0] if own else place.shape[-1] * place.size
        own = [(1, outer)] * (4 - len(own)) + own
        found.append(Pixels(place, (*(n for n, _ in own), place.shape[-1]), tuple(s for _, s in own)))  # type: ignore[arg-type]
    return found


def merged(shape: Axes, strides: list[Axes]) -> list[tuple[int, tuple[int, ...]]]:
    """The axes (length, stride of each operand) that are left where neighbours which all operands step over evenly become one."""
    found: list[tuple[int, tuple[int, ...]]] = []
    for n, *steps in zip(shape, *strides, strict=True):
        if n == 1:
            continue
        if found and all(outer == inner * n for outer, inner in zip(found[-1][1], steps, strict=True)):
            found[-1] = (found[-1][0] * n, tuple(steps))
        else:
            found.append((n, tuple(steps)))
    return found


Steps = tuple[int, ...] | None  # strides that an operand may have along the last axis; None: any


def five(shape: Axes, strides: Sequence[Axes], last: Sequence[Steps]) -> list[tuple[int, tuple[int, ...]]]:
    """Five axes (length, stride of each operand) over all elements; along the last one each operand steps as its kernel can.

    Where none of the given axes is like that one of length 1 is, and of more than five some become one. Raises ValueError if too many stay.
    """
    axes = _with_last(list(zip(shape, zip(*strides, strict=True), strict=True)), last)
    if len(axes) > 5:
        axes = _with_last(merged(shape, list(strides)), last)
    if len(axes) > 5:
        raise ValueError("elements that lie in more than five dimensions")
    return [(1, (0,) * len(last))] * (5 - len(axes)) + axes


def _with_last(axes: list[tuple[int, tuple[int, ...]]], last: Sequence[Steps]) -> list[tuple[int, tuple[int, ...]]]:
    length, steps = axes[-1] if axes else (1, (0,) * len(last))
    fits = length == 1 or all(allowed is None or step in allowed for step, allowed in zip(steps, last, strict=True))
    return axes if fits else [*axes, (1, tuple(allowed[0] if allowed else 1 for allowed in last))]
