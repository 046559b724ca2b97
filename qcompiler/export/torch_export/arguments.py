"""The arguments that a graph is exported with, and which of their dimensions stay open."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import fx
from torch.export import Dim
from torch.utils._pytree import tree_leaves

from qcompiler.errors import ConfigError
from qcompiler.executable.arguments import Argument, arguments_of_graph
from qcompiler.export.dims import DynamicShapes, named_places
from qcompiler.ir.form import Form
from qcompiler.stages.size_dims import OFFSETS, Search
from qcompiler.stages.size_runs import Place, parts_of_form

T = TypeVar("T")
AUTO: object = Dim.AUTO
LEAST = 2  # torch.export holds sizes of 0 and 1 fixed


@dataclass(frozen=True)
class Given:
    """One call: tensors of zeros, as the forward takes them.

    `paths`: the names of what it holds, flat. `open`: the dimensions that are to stay open; `shapes`: the same as torch.export takes them.
    """

    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    paths: tuple[str, ...]
    open: Collection[Place]
    shapes: Mapping[str, object]


def given_for(gm: fx.GraphModule, search: Search, asked: DynamicShapes, held: Collection[Place] = ()) -> Given:
    """What to export a graph with. `held`: dimensions that keep the example's size. Raises ConfigError for what a program cannot take, and
    for dimensions that are not there."""
    arguments = [argument for argument in arguments_of_graph(gm.graph) if not _left_out(argument)]
    for argument in arguments:
        _refuse(argument.name, argument.form)
    hints = {place: hint for place, hint in _hints(asked, search).items() if place not in held}
    sizes = _sizes(search, hints)
    values = {a.name: _example(a.name, a.form, sizes) for a in arguments}
    shapes = {a.name: _hinted(a.name, a.form, hints) for a in arguments}
    paths = tree_leaves([_mapped(a.name, a.form, lambda path, part: path) for a in arguments])
    by_position = _by_position(gm, arguments)
    args, kwargs = tuple(values[name] for name in by_position), {k: v for k, v in values.items() if k not in by_position}
    return Given(args, kwargs, tuple(paths), hints.keys(), shapes)


def _left_out(argument: Argument) -> bool:
    """Whether the example leaves an argument at its default: then a call of the program does so too."""
    form, default = argument.form, argument.default
    if form.kind == "number":
        return argument.optional and type(form.value) is type(default) and form.value == default
    return argument.optional and form.kind == "value" and form.value is default


def _by_position(gm: fx.GraphModule, arguments: Sequence[Argument]) -> list[str]:
    """The arguments before the first that is left out."""
    names = [str(node.target) for node in gm.graph.nodes if node.op == "placeholder"]
    taken = [argument.name for argument in arguments]
    return [name for i, name in enumerate(names) if names[: i + 1] == taken[: i + 1]]


def _refuse(name: str, form: Form) -> None:
    if form.kind == "number" and form.name != "fixed":
        raise ConfigError(f"the argument {name} is a number, and a program would hold the example's for good", code="export-number",
                          hint=f"prepare with concrete_args={{{name!r}: {form.value!r}}}, or let the model take a tensor")  # fmt: skip
    if form.kind in ("named", "object"):
        raise ConfigError(f"the argument {name} is a {form.name}, which a program cannot take", code="export-argument",
                          hint="let the model take tensors, lists, tuples or dicts")  # fmt: skip
    for path, part in parts_of_form(name, form):
        _refuse(path, part)


def _mapped(name: str, form: Form, leaf: Callable[[str, Form], T]) -> Any:
    """What `leaf` gives for each tensor, flag and text of an argument, in its containers."""
    if form.kind not in ("list", "tuple", "dict"):
        return leaf(name, form)
    parts = [_mapped(path, part, leaf) for path, part in parts_of_form(name, form)]
    return dict(zip(form.keys, parts, strict=True)) if form.kind == "dict" else parts if form.kind == "list" else tuple(parts)


def _example(name: str, form: Form, sizes: Mapping[Place, int]) -> Any:
    def made(path: str, part: Form) -> Any:
        if part.kind != "tensor":
            return part.value
        return torch.zeros([sizes.get((path, axis), size) for axis, size in enumerate(part.shape)], dtype=getattr(torch, part.name))

    return _mapped(name, form, made)


def _hinted(name: str, form: Form, hints: Mapping[Place, object]) -> Any:
    def made(path: str, part: Form) -> dict[int, object] | None:
        return {axis: hints[path, axis] for axis in range(len(part.shape)) if (path, axis) in hints} if part.kind == "tensor" else None

    return _mapped(name, form, made)


def _hints(asked: DynamicShapes, search: Search) -> dict[Place, object]:
    """Hints to torch.export, by the dimensions that are to stay open: those asked for, else all."""
    if asked is None:
        return {place: AUTO for place, *_ in search.runner.places()}
    there = {place for place, *_ in search.runner.places()}
    hints = {place: AUTO if dim is None else Dim.AUTO(min=dim.min, max=dim.max) for place, _, dim in named_places(asked)}
    for source, axis in hints:
        if (source, axis) not in there:
            raise ConfigError(f"there is no dimension {axis} of an input {source!r:.60}", code="dynamic-shapes",
                              hint=f"the inputs are {', '.join(sorted({name for name, _ in there}))}")  # fmt: skip
    return hints


def _sizes(search: Search, hints: Mapping[Place, object]) -> dict[Place, int]:
    """Sizes to export at where they are not the example's: a batch of two, which is kept in the program, and no 0 and no 1."""
    examples = {place: size for place, size, *_ in search.runner.places()}
    batch = {place: LEAST for place in hints if place[1] == 0 and examples[place] > LEAST}
    made = batch if batch and search.takes(batch) else {}
    for place in (place for place in hints if examples[place] < LEAST):
        dim = search.dim(place) if place not in made else None
        made |= dim.sizes(OFFSETS[0]) if dim is not None else {}
    return made
