"""What the forms of ops ask: of the arguments of a step, and of the planner that they add their layers to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from qcompiler.backends.native.plan.codes import Bounds, Codes
from qcompiler.backends.native.plan.homes import Every, Home
from qcompiler.backends.native.plan.layer import Layer
from qcompiler.backends.native.plan.place import Axes
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.steps import Step, is_value

Argument = Any  # of a step: a value (%name), a tensor (#number), a number, or a nest of these
WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8)
STEPPED, COPIED = 5, 6  # dimensions that a layer steps through, and that a copy does
MOST_TURNS = 3  # how often, from dimension to dimension, it may change which operands are spread


# Why a form is of another kind than the step: these say less than the reason of the form that is of its kind.
NOT_INT8 = "its input is not int8"
NOT_FLOAT = "its weight is not float"
OTHER_KIND = (NOT_INT8, NOT_FLOAT)


class Facts(Protocol):
    """What a family asks about the arguments of a step to say whether it takes it."""

    def shape(self, argument: Argument) -> Axes:
        """At the example's sizes."""

    def rank(self, argument: Argument) -> int:
        """How many dimensions a value has."""

    def is_floats(self, argument: Argument) -> bool:
        """Whether it is one value of floats."""

    def is_parts(self, argument: Argument) -> bool:
        """Whether it is several values, of codes or of floats."""

    def is_dynamic(self, argument: Argument) -> bool:
        """Whether it is one value that is rounded on its own range at each call."""

    def is_mask(self, argument: Argument) -> bool:
        """Whether it is one value of bools."""

    def is_whole(self, argument: Argument) -> bool:
        """Whether it is one value of whole numbers that torch made."""

    def is_places(self, argument: Argument) -> bool:
        """Whether it is one value of places that a form of the C's finds, or that were moved since."""

    def row_length(self, argument: Argument) -> int | None:
        """Of places that a form of the C's finds: how many elements the rows have in which they are, at the example's sizes."""

    def is_known(self, argument: Argument) -> bool:
        """Whether sizes and constants settle it."""

    def table_fault(self, argument: Argument, most: int) -> str | None:
        """Why an argument cannot be a table of at most so many rows; None where it can."""

    def gives_codes(self, step: Step) -> bool:
        """Whether all that reads the floats of a step quantizes them in one way."""

    def is_codes(self, argument: Argument) -> bool:
        """Whether it is one value of codes, dequantized or not."""

    def is_number(self, argument: Argument) -> bool:
        """Whether it is a number that is computed from sizes."""

    def is_int8_weight(self, argument: Argument) -> bool:
        """Whether it is the int8 weight of a step."""

    def weight_fault(self, argument: Argument, channels: int = 0) -> str | None:
        """Why an argument cannot be a weight; None where it can."""


@dataclass(frozen=True)
class Sums:
    """What a layer hands out in floats that one step alone reads; `clamp`: the layer of its bounds behind it."""

    layer: Layer
    bounds: Bounds = None
    clamp: Layer | None = None


class Planning(Facts, Protocol):
    """The layers so far, and what is known of their values.

    `codes`: of each value. `example`: shapes at the example's sizes. `alias`: names of values that are others under another name.
    `made`: the layer of each value. `homes`: values that are made in their place in another. `weights`: the steps of int8 weights and
    tables. `ranges`: of codes on ranges of their own, which value holds the range.
    """

    layers: list[Layer]
    codes: dict[str, Codes]
    example: Sizes
    alias: dict[str, str]
    made: dict[str, Layer]
    homes: dict[str, Home | Every]
    weights: dict[str, Step]
    ranges: dict[str, str]

    def add(self, layer: Layer, codes: Codes | None = None) -> str:
        """Appends a layer and returns the value that it makes, whose codes are `codes`, or those that the layer names."""

    def label(self, step: Step) -> str:
        """What a layer of a step is called in texts."""

    def result(self, step: Step) -> tuple[str, Codes | None]:
        """Name and codes of what a step makes; the codes are None where it hands out floats, or several values."""

    def value(self, argument: Argument) -> str:
        """The value behind an argument: codes where it is a dequantized one."""

    def operand(self, argument: Argument) -> str:
        """The value behind an argument that may be a tensor of the network's, a number, or an input."""

    def source_of(self, name: str) -> str:
        """The value whose elements a value has, seen in any shape."""

    def sums(self, argument: Argument) -> Sums | None:
        """The layer that makes floats which one step alone reads; None where the argument is no such value."""

    def take_back(self, sums: Sums) -> None:
        """Takes out layers that another one will do the work of."""

    def constant(self, name: str, tensor: Tensor) -> str:
        """A value of floats that is known."""

    def tensor(self, argument: Argument) -> Tensor:
        """The tensor of the network's that an argument names."""

    def with_tensors(self, value: Argument) -> Argument:
        """An argument with the tensors that it names."""

    def weight(self, argument: Argument, channels: int = 0) -> tuple[Tensor, Tensor]:
        """int8 weight and its scales, one for each channel (along that axis), in float64."""

    def pixels(self, argument: Argument, pads: Axes, dims: int | None = None) -> str:
        """A value as a convolution or a pool wants it: channels side by side, with a halo of its zero point."""

    def rows(self, argument: Argument) -> str:
        """A value whose last dimension lies side by side."""

    def like(self, argument: Argument, other: str) -> str:
        """A value that lies as `other` does, which it is put together with."""

    def may_move(self, name: str, codes: Codes) -> bool:
        """Whether a value can be made in its place in a cat, on the cat's steps."""

    def lies_as(self, name: str, parts: Sequence[str]) -> bool:
        """Whether a value that surely lies in some way can be made beside the first of `parts`, which says how the whole lies."""

    def move(self, name: str, whole: str, dim: int, before: tuple[str, ...]) -> None:
        """Make a value in its place in a cat."""


def move_fault(argument: Argument, facts: Facts) -> str | None:
    """Why no layer moves the elements of a value."""
    kinds = (facts.is_codes, facts.is_floats, facts.is_mask, facts.is_places)
    return None if any(kind(argument) for kind in kinds) else "its input is not float32"


def refuse_rows(step: Step, facts: Facts) -> str | None:
    """Of all that takes one value and settings."""
    if not (facts.is_codes(step.args[0]) or facts.is_floats(step.args[0])):
        return "its input is not float32"
    return "its settings are computed at run time" if any(map(is_value, step.kwargs.values())) else None


def turns(shapes: Sequence[Axes]) -> int:
    """How often, from dimension to dimension, it changes which of these shapes are spread over the others."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    spread = [tuple(n == 1 < max(along) for n in along) for along in zip(*padded, strict=True)]
    return sum(a != b for a, b in itertools.pairwise(spread))


def spread_fault(arguments: Sequence[Argument], facts: Facts) -> str | None:
    """Why no layer steps through operands that are spread over one another: neighbours along which the same ones are spread become one."""
    shapes = [facts.shape(argument) for argument in arguments]
    many = max(map(len, shapes)) > COPIED and needs_copies(shapes)
    return "its operands are spread over one another in too many dimensions" if many else None


def needs_copies(shapes: Sequence[Axes]) -> bool:
    """Whether a layer steps through values of these shapes only where each was copied to where it is spread."""
    return max(map(len, shapes)) > STEPPED and turns(shapes) > MOST_TURNS
