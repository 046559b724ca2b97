"""Which dimensions of the inputs may change in the file, and what they are called there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from qcompiler.export.dims import DynamicShapes, asked_dims, named_places
from qcompiler.ops.table import Table
from qcompiler.stages.size_dims import Search
from qcompiler.stages.size_expressions import Floor, Least, Modulo, Name, Product, Size, Sum, add, floor, least, modulo, times
from qcompiler.stages.size_runs import Place, Runner
from qcompiler.stages.sizes import Shape, Sized, sizes_with


@dataclass(frozen=True)
class Known:
    """`of`: the sizes of every node. `places`: by dimension where it is read off."""

    of: Mapping[fx.Node, Sized]
    places: Mapping[str, Place]


def known_sizes(gm: fx.GraphModule, table: Table, asked: DynamicShapes) -> Known:
    """The sizes of a graph with those dimensions open that the caller asks for; None: all that the model lets change.

    Raises ConfigError for one that the model holds fixed, with what does.
    """
    if isinstance(asked, Mapping) and not any(asked.values()):
        return Known({node: _fixed(found) for node, found in Runner(gm, table).run({}).items()}, {})
    search = Search(Runner(gm, table))
    found = search.alone()
    if asked is not None:
        asked_dims(found, search.fixed, asked)
        places = {place for place, *_ in named_places(asked)}
        found = [dim for dim in found if places.intersection(dim.places)]
    dims = search.together(found)
    called = {dim.name: dim.name for dim in dims} if asked is None else asked_dims(dims, search.fixed, asked)
    names = {name: Name(given) for name, given in called.items()}
    sizes = sizes_with(gm, table, search, dims)
    return Known({node: _with(sized, names) for node, sized in sizes.items()}, {names[dim.name].name: dim.places[0] for dim in dims})


def _fixed(found: object) -> Sized:
    if isinstance(found, tuple):
        return Shape(found)
    return [_fixed(part) for part in found] if isinstance(found, list) else found  # type: ignore[return-value]


def _with(sized: Sized, values: Mapping[str, Size]) -> Sized:
    if isinstance(sized, Shape):
        return Shape(put(size, values) for size in sized)
    if isinstance(sized, list):
        return [_with(part, values) for part in sized]
    return put(sized, values) if isinstance(sized, (int, Name, Sum, Product, Floor, Modulo, Least)) else sized


def put(size: Size, values: Mapping[str, Size]) -> Size:
    """An expression with other names, or numbers, in the place of its dimensions."""
    if isinstance(size, int):
        return size
    if isinstance(size, Name):
        return values[size.name]
    if isinstance(size, Sum):
        return add(*(put(term, values) for term in size.terms))
    if isinstance(size, Product):
        return times(*(put(factor, values) for factor in size.factors))
    if isinstance(size, Least):
        return least(*(put(part, values) for part in size.of))
    whole = floor if isinstance(size, Floor) else modulo
    return whole(put(size.of, values), put(size.by, values))


__all__ = ["Known", "known_sizes", "put"]
