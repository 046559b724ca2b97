"""Which dimensions of the inputs a file or program leaves open: those that the caller names, as far as the model lets them change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from torch.export import Dim as NamedDim

from qcompiler.errors import ConfigError
from qcompiler.stages.size_dims import Dim
from qcompiler.stages.size_runs import Place

Called: TypeAlias = str | NamedDim | None  # None: it is not asked for
Asked: TypeAlias = Mapping[str, Mapping[int, Called] | Sequence[Called]]
DynamicShapes: TypeAlias = Asked | None


def named_places(asked: Asked) -> Iterator[tuple[Place, str, NamedDim | None]]:
    """The places that are asked for, with their names; those that torch.export.Dim names with that. Raises ConfigError for no names."""
    for source, axes in asked.items() if isinstance(asked, Mapping) else (("", asked),):
        if not isinstance(asked, Mapping) or isinstance(axes, str) or not isinstance(axes, (Mapping, Sequence)):
            raise ConfigError(f"dynamic_shapes cannot be {asked!r:.60}", code="dynamic-shapes",
                              hint='give names by input and dimension: {"x": {0: "batch"}} or {"x": ("batch", None)}')  # fmt: skip
        for axis, called in axes.items() if isinstance(axes, Mapping) else enumerate(axes):
            if isinstance(called, NamedDim):
                yield (source, axis), called.__name__, called
            elif isinstance(called, str):
                yield (source, axis), called, None
            elif called is not None:
                raise ConfigError(f"dimension {axis} of {source!r:.60} is to be called {called!r:.60}", code="dynamic-shapes",
                                  hint='names are texts: dynamic_shapes={"x": {0: "batch"}}')  # fmt: skip


def asked_dims(dims: Sequence[Dim], fixed: Mapping[Place, str], asked: Asked) -> dict[str, str]:
    """By the name of a dimension that may change the caller's name of it.

    Raises ConfigError for one that the model holds fixed, with what does, and for names that say what the model does not.
    """
    found: dict[str, str] = {}
    for place, name, _ in named_places(asked):
        source, axis = place
        dim = next((dim for dim in dims if place in dim.places), None)
        if dim is None:
            why = fixed.get(place, "there is no such dimension of an input")
            raise ConfigError(f"dimension {axis} of {source!r:.60} cannot change: {why}", code="dynamic-shapes", hint=_open(dims))
        if found.setdefault(dim.name, name) != name:
            raise ConfigError(f"{found[dim.name]!r} and {name!r} are one dimension", code="dynamic-shapes",
                              hint="the model lets both change together alone: give them one name")  # fmt: skip
        if any(other != dim.name and called == name for other, called in found.items()):
            raise ConfigError(f"{name!r} is the name of two dimensions, which may have two sizes", code="dynamic-shapes",
                              hint="give each a name of its own")  # fmt: skip
    return found


def _open(dims: Sequence[Dim]) -> str:
    places = ", ".join(f"{axis} of {source!r} ({dim.name})" for dim in dims for source, axis in dim.places)
    return f"what may change: {places or 'nothing'}"
