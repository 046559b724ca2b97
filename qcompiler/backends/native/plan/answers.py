"""What a planner knows of the values so far, as the forms of ops ask it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.float_pointwise import FloatMap
from qcompiler.backends.native.plan.layer import Layer
from qcompiler.backends.native.plan.pick import Pick
from qcompiler.backends.native.plan.place import Axes
from qcompiler.backends.native.plan.planning import WHOLE, Argument, Sums
from qcompiler.backends.native.plan.relayout import Relayout
from qcompiler.backends.native.plan.settled import Computed
from qcompiler.backends.native.plan.shape import View
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.steps import Step, is_tensor, is_value
from qcompiler.ir.nested import rewrite


def _is_shape(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(n, int) for n in value)


class Answers:
    """The Facts of a region's values; a Planner keeps them."""

    tensors: Sequence[Tensor]
    codes: dict[str, Codes]
    example: Sizes
    alias: dict[str, str]
    made: dict[str, Layer]
    weights: dict[str, Step]
    quantized: dict[str, Step]
    ranges: dict[str, str]
    readers: Counter[str]

    def value(self, argument: Argument) -> str:
        """The value behind an argument: codes where it is a dequantized one."""
        name = str(argument)[1:]
        while name in self.alias:
            name = self.alias[name]
        return name

    def tensor(self, argument: Argument) -> Tensor:
        if not is_tensor(argument) or int(argument[1:]) >= len(self.tensors):
            raise ValueError(f"{argument!r:.40} is none of the {len(self.tensors)} constants that are given")
        return self.tensors[int(argument[1:])]

    def with_tensors(self, value: Argument) -> Argument:
        """An argument with the tensors that it names."""
        return rewrite(value, lambda leaf: self.tensor(leaf) if is_tensor(leaf) else leaf)

    def source_of(self, name: str) -> str:
        """The value whose elements a value has, seen in any shape, some of them, or some more than once."""
        while isinstance(layer := self.made.get(name), (View, Relayout, Pick)) and getattr(layer, "op", "") != "pad":
            name = layer.x
        return name

    def rank(self, argument: Argument) -> int:
        """Of a value, or of an argument."""
        return len(self.shape(argument))

    def shape(self, argument: Argument) -> Axes:
        """At the example's sizes."""
        if is_tensor(argument):
            return tuple(self.tensor(argument).shape)
        found = self.example.shapes.get(self.value(argument) if is_value(argument) else str(argument))
        return found if isinstance(found, tuple) else ()

    def is_codes(self, argument: Argument) -> bool:
        return is_value(argument) and self.value(argument) in self.codes

    def is_floats(self, argument: Argument) -> bool:
        if is_tensor(argument):
            return self.tensor(argument).dtype is torch.float32
        name = self.value(argument) if is_value(argument) else ""
        return name not in self.codes and _is_shape(self.example.shapes.get(name))

    def is_parts(self, argument: Argument) -> bool:
        """Whether it is several values, of codes or of floats."""
        found = self.example.shapes.get(self.value(argument)) if is_value(argument) else None
        return isinstance(found, tuple) and not _is_shape(found)

    def is_mask(self, argument: Argument) -> bool:
        """Whether it may be one: within a region masks and whole numbers are floats; constants and what sizes settle are what they were."""
        known = self.tensor(argument) if is_tensor(argument) else self.example.computed.get(self.value(argument))
        return known.dtype is torch.bool if isinstance(known, Tensor) else self.is_floats(argument)

    def is_places(self, argument: Argument) -> bool:
        return self.is_floats(argument)

    def is_whole(self, argument: Argument) -> bool:
        return self.tensor(argument).dtype in WHOLE if is_tensor(argument) else self.is_floats(argument)

    def row_length(self, argument: Argument) -> int | None:
        return None

    def is_known(self, argument: Argument) -> bool:
        return is_value(argument) and isinstance(self.made.get(self.value(argument)), Computed)

    def table_fault(self, argument: Argument, most: int) -> str | None:
        return None

    def is_dynamic(self, argument: Argument) -> bool:
        return is_value(argument) and self.value(argument) in self.ranges

    def gives_codes(self, step: Step) -> bool:
        return step.out in self.quantized

    def is_number(self, argument: Argument) -> bool:
        return is_value(argument) and isinstance(self.example.shapes.get(self.value(argument)), (int, float))

    def is_int8_weight(self, argument: Argument) -> bool:
        return is_value(argument) and argument[1:] in self.weights

    def weight_fault(self, argument: Argument, channels: int = 0) -> str | None:
        return None if self.is_int8_weight(argument) else "its weight is computed at run time"

    def sums(self, argument: Argument) -> Sums | None:
        name = self.value(argument) if is_value(argument) else ""
        layer = self.made.get(name)
        if layer is None or self.readers[name] != 1 or name in self.codes:
            return None
        inner = self.made.get(f"{name}.unbounded")
        if inner is None or not isinstance(layer, FloatMap):
            return Sums(layer)
        low, high = layer.numbers
        return Sums(inner, (None if low == -math.inf else low, None if high == math.inf else high), layer)
