"""Which sizes of a graph's values change with its inputs, and how: what a code generator must know, since the rest is constant.

`sizes_of(gm)` gives each node's shape in integers and expressions of named dimensions (batch, channels, depth, height, width, length,
features). They are found by running the graph on shapes alone at some thirty sizes: an expression comes from the op's attributes, or from
what agrees, and must give the right size at all of them. What nothing explains is Unknown, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import fx

from qcompiler.errors import ConfigError
from qcompiler.ir.form import Form
from qcompiler.ops.table import NO_DEFAULT, OPS, Table, parse_signature
from qcompiler.stages.size_dims import Dim, Search
from qcompiler.stages.size_expressions import Name, Size, evaluate, is_size
from qcompiler.stages.size_rules import Known, Local, dimension, kind_of, number
from qcompiler.stages.size_runs import Dims, Found, Place, Runner, Unknown, form_of, parts_of_form


class Shape(tuple[Size, ...]):
    """The sizes of a tensor, one a dimension."""


Sized: TypeAlias = "Shape | Size | list[Sized] | Unknown | None"  # None: neither a tensor nor a whole number


@dataclass(frozen=True)
class Sizes(Mapping[fx.Node, Sized]):
    """By node: a Shape, a Size (of a whole number), a list of these, Unknown, or None for what has no size.

    `dims`: the dimensions that may change, by name. `fixed`: by (input, axis), why a size of an input may not.
    """

    dims: Mapping[str, Dim]
    fixed: Mapping[Place, str]
    of: Mapping[fx.Node, Sized]

    def __getitem__(self, node: fx.Node) -> Sized:
        return self.of[node]

    def __iter__(self) -> Iterator[fx.Node]:
        return iter(self.of)

    def __len__(self) -> int:
        return len(self.of)

    def at(self, **sizes: int) -> dict[fx.Node, Sized]:
        """The shapes as numbers, at the sizes given and the example's for other dimensions.

        ConfigError for a dimension that there is not, or that changes in other steps.
        """
        values = {name: dim.example for name, dim in self.dims.items()} | sizes
        for name, size in sizes.items():
            dim = self.dims.get(name)
            if dim is None:
                raise ConfigError(f"no dimension {name!r} changes; there are {', '.join(self.dims) or 'none'}", code="size-name")
            if (size - dim.example) % dim.step:
                raise ConfigError(f"{name} changes in steps of {dim.step} from {dim.example}, so it cannot be {size}", code="size-step")
        return {node: _numbers(sized, values) for node, sized in self.of.items()}

    @property
    def unknown(self) -> dict[fx.Node, str]:
        """The nodes some size of which nobody can tell, with the reason."""
        return {node: reason for node, sized in self.of.items() if (reason := _reason(sized)) is not None}


def sizes_of(gm: fx.GraphModule, table: Table = OPS) -> Sizes:
    """The sizes of all values of a FUSED, OBSERVED or QUANTIZED graph. Nothing of the graph is changed."""
    search = Search(Runner(gm, table))
    return sizes_with(gm, table, search, search.together(search.alone()))


def sizes_with(gm: fx.GraphModule, table: Table, search: Search, dims: Sequence[Dim]) -> Sizes:
    """The sizes of all values with these dimensions open, which `search` has tried together, and all others held."""
    named = {place: dim for dim in dims for place in dim.places}
    values = [{named[place].name: size for place, size in sizes.items()} for sizes, _ in search.runs]
    example = {dim.name: dim.example for dim in dims}
    derive = _Derivation(table, [example | given for given in values], [found for _, found in search.runs])
    of: dict[fx.Node, Sized] = {}
    for node in (node for node in gm.graph.nodes if node.op != "output"):
        of[node] = derive.input(node, named) if node.op == "placeholder" else derive.node(node, of)
    return Sizes({dim.name: dim for dim in dims}, search.fixed, of)


class _Derivation:
    """Explains what the runs found, node by node. `values`: the named dimensions of each run."""

    def __init__(self, table: Table, values: list[dict[str, int]], runs: list[dict[fx.Node, Found]]) -> None:
        self.table, self.values, self.runs = table, values, runs

    def at(self, size: Size) -> tuple[int, ...]:
        try:
            return tuple(evaluate(size, given) for given in self.values)
        except ZeroDivisionError:
            return ()

    def input(self, node: fx.Node, named: Mapping[Place, Dim]) -> Sized:
        def sized(path: str, form: Form) -> Sized:
            if form.kind == "tensor":
                return Shape(Name(named[path, i].name) if (path, i) in named else size for i, size in enumerate(form.shape))
            if form.parts:
                return [sized(*part) for part in parts_of_form(path, form)]
            return form.value if isinstance(form.value, int) and not isinstance(form.value, bool) else None

        return sized(str(node.target), form_of(node))

    def node(self, node: fx.Node, of: Mapping[fx.Node, Sized]) -> Sized:
        local = self._local(node, of)
        return self._explain(local, [found[node] for found in self.runs])

    def _explain(self, local: Local, found: list[Found], index: int | None = None) -> Sized:
        first = found[0]
        lost = next((f for f in found if isinstance(f, Unknown)), None)
        if lost is not None:
            return lost
        if isinstance(first, list) and all(isinstance(f, list) and len(f) == len(first) for f in found):
            return [self._explain(local, [f[i] for f in found], i) for i in range(len(first))]  # type: ignore[index]
        if isinstance(first, int) and all(isinstance(f, int) for f in found):
            values = tuple(f for f in found if isinstance(f, int))
            made = number(local, values, self.at, index)
            return made if made is not None else self._unknown(local, f"numbers {_some(values)}")
        if isinstance(first, Dims) and all(isinstance(f, Dims) and len(f) == len(first) for f in found):
            return self._shape(local, [f for f in found if isinstance(f, Dims)])
        alike = all(f is None for f in found)
        return None if alike else Unknown(f"%{local.node.name}: its kind or its number of parts changes with the sizes")

    def _shape(self, local: Local, found: list[Dims]) -> Sized:
        sizes: list[Size] = []
        for axis, values in enumerate(zip(*found, strict=True)):
            made = dimension(local, axis, len(found[0]), values, self.at)
            if made is None:
                return self._unknown(local, f"sizes {_some(values)} of its dimension {axis}")
            sizes.append(made)
        return Shape(sizes)

    def _unknown(self, local: Local, what: str) -> Unknown:
        """Nothing explains it: often since a size that it takes is unknown, which is then the reason."""
        behind = next((reason for source in local.node.all_input_nodes if (reason := _reason(local.sizes[source])) is not None), None)
        return Unknown(behind or f"%{local.node.name}: nothing explains the {what}")

    def _local(self, node: fx.Node, of: Mapping[fx.Node, Sized]) -> Local:
        shapes: list[tuple[Known, ...]] = []
        numbers: list[Known] = []

        def gather(sized: object) -> None:
            if isinstance(sized, Shape):
                shapes.append(tuple(Known(size, self.at(size)) for size in sized))
            elif isinstance(sized, (list, tuple)):
                for part in sized:
                    gather(part)
            elif isinstance(sized, fx.Node):
                gather(of[sized])
            elif isinstance(sized, slice):
                gather((sized.start, sized.stop, sized.step))
            elif is_size(sized):
                numbers.append(Known(sized, self.at(sized)))

        gather((node.args, tuple(node.kwargs.values())))
        row = self.table.of(node)
        entries = parse_signature(row.signature) if row is not None else ()
        defaults = {name: default for _, _, name, default in entries if default is not NO_DEFAULT}
        kind, dims = kind_of(node, self.table), row.dims if row is not None else None
        return Local(node, kind, tuple(shapes), tuple(numbers), {**defaults, **node.kwargs}, of, dims)


def _some(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, list(dict.fromkeys(values))[:6]))


def _numbers(sized: Sized, values: Mapping[str, int]) -> Sized:
    if isinstance(sized, Shape):
        return Shape(evaluate(size, values) for size in sized)
    if isinstance(sized, list):
        return [_numbers(part, values) for part in sized]
    return sized if sized is None or isinstance(sized, Unknown) else evaluate(sized, values)


def _reason(sized: Sized) -> str | None:
    if isinstance(sized, list):
        return next((reason for part in sized if (reason := _reason(part)) is not None), None)
    return sized.reason if isinstance(sized, Unknown) else None
