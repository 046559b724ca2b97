"""The example call that stands in each row; example_call.py makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Shape: TypeAlias = tuple[int, ...]
IMAGE: Shape = (2, 8, 6, 6)


@dataclass(frozen=True, eq=False)  # it may hold tensors
class Example:
    """Arguments for a row: shapes of the activations, shapes of the parameters (of a list: several), attributes by canonical name.

    `positive`, `bounded`: inputs above zero, in -0.9..0.9. `smooth`: a step of the input makes no jump of the result. `pick`: which of
    several results counts. Integer tensors (indices) stand among the attributes.
    """

    inputs: tuple[Shape, ...] = (IMAGE,)
    tensors: Mapping[str, Shape | tuple[Shape, ...]] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    positive: bool = False
    bounded: bool = False
    smooth: bool = True
    pick: int | None = None
