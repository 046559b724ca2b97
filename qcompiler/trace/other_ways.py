"""Whether a model does something else where a question about the layout of its tensors has another answer: it is traced once more there.

`x if x.is_contiguous() else x.contiguous()` does not: both ways compute the same values. What two traces compute is compared without
the calls that change a layout alone. A value that nobody can compute here (of a float module, of data) is made otherwise in that trace.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from qcompiler.trace.layouts import Layout, in_order, order_of, strides_in
from qcompiler.trace.numbered import Numbered
from qcompiler.trace.other_sizes import NUMBER, Given, NotThisSize, Order
from qcompiler.trace.questions import Question
from qcompiler.trace.relied import Relied
from qcompiler.trace.tracer import Tracer

Traced = tuple[Tracer, Sequence[fx.Node]]  # a trace, and its live nodes in order

_MOST = 48  # other traces of one model: with more, each answer counts


@dataclass(frozen=True)
class Instead:
    """What is otherwise in a trace: by the name of an argument the tensor, by that of a node what its example becomes."""

    given: Mapping[str, torch.Tensor]
    made: Mapping[str, Callable[[Any], Any]]


@dataclass
class OtherWays:
    """`made`: a trace; `again`: the same model, traced on other values, None where it cannot be; NotThisSize where it does not run on
    them."""

    made: Traced
    again: Callable[[Instead], Traced | None]
    _known: dict[Hashable, bool] = field(default_factory=dict)

    def judge(self, differing: Mapping[Relied, Hashable], given: Given) -> list[Relied]:
        """Of the facts that are others in a run, those that make a difference: all but questions that lead nowhere else."""
        asked = {fact: found for fact, found in differing.items() if isinstance(fact, Question) and not fact.always}
        ones = frozenset(place for place, size in given.sizes.items() if size == 1)
        key = frozenset(asked.items()), ones, frozenset(given.layouts), given.order
        if asked and key not in self._known:
            self._known[key] = len(self._known) >= _MOST or self._goes_elsewhere(given)
        return [fact for fact in differing if fact not in asked or self._known[key]]

    def _goes_elsewhere(self, given: Given) -> bool:
        tracer, _ = self.made
        for alike in (False, True):
            tensors = {
                name: made for node, (name, _) in tracer.given.items() if (made := _laid_out(tracer, node, given, alike)) is not None
            }
            making = _Making(tracer, given)
            try:
                other = self.again(Instead(tensors, making.by_name))
            except NotThisSize:
                if len(tracer.given) == 1 and not making.by_name:
                    return False  # the model does not take it
                continue
            if other is None:
                continue
            laid = {name: tensor.stride() for name, tensor in other[0].given.values()}
            numbered, as_asked = Numbered(), all(laid.get(name) == tensor.stride() for name, tensor in tensors.items())
            as_asked = as_asked and making.seen == set(making.by_name)
            return not as_asked or numbered.results(*self.made) != numbered.results(*other)
        return True


class _Making:
    """Values that are no arguments' tensors in the form of a run, in a trace that meets them. `seen`: the names of those that it met."""

    def __init__(self, tracer: Tracer, given: Given) -> None:
        self._given, self.seen = given, set[str]()
        nodes = [*(node for node, _ in given.sizes), *given.layouts]
        self.by_name = {node.name: functools.partial(self._made, node) for node in dict.fromkeys(nodes) if node not in tracer.given}

    def _made(self, node: fx.Node, example: object) -> object:
        if not isinstance(example, torch.Tensor):
            self.seen.add(node.name)
            return self._given.sizes.get((node, NUMBER), example)
        sizes = [self._given.sizes.get((node, dim), size) for dim, size in enumerate(example.shape)]
        self.seen.add(node.name)
        return _filled(example, _made_in(self._given.layouts.get(node), example, sizes, self._given.order))


def _laid_out(tracer: Tracer, node: fx.Node, given: Given, alike: bool) -> torch.Tensor | None:
    """The example of an argument in the sizes and the layout of a run. `alike`: sizes that equal one that is changed are, too."""
    example = tracer.given[node][1]
    changed = {(dim, _size(tracer, at, dim)): size for (at, dim), size in given.sizes.items() if at in tracer.given}
    sizes = [given.sizes.get((node, dim), changed.get((dim, size), size) if alike else size) for dim, size in enumerate(example.shape)]
    layout = given.layouts.get(node)
    if layout is None and sizes == list(example.shape) and given.order is None:
        return None
    return _filled(example, _made_in(layout, example, sizes, given.order))


def _made_in(layout: Layout | None, example: torch.Tensor, sizes: list[int], order: Order | None) -> torch.Tensor:
    """A tensor of these sizes in a layout, else the example's; `order`: what gives it its strides in dimensions of size 1."""
    made = (layout or in_order(order_of(example)))(sizes, example.dtype)
    if order is None or example.dim() < 3:
        return made
    as_if = strides_in(order(example.dim()), sizes)
    strides = [other if n == 1 else own for n, own, other in zip(sizes, made.stride(), as_if, strict=True)]
    return made.as_strided(sizes, strides)


def _filled(example: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """With the example's values, again and again."""
    for dim, size in enumerate(made.shape):
        example = example.index_select(dim, torch.arange(size) % max(example.shape[dim], 1))
    return made.copy_(example.detach())


def _size(tracer: Tracer, node: fx.Node, dim: int) -> int:
    return int(tracer.given[node][1].shape[dim])
