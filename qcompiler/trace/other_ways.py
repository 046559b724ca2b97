"""Whether a model does something else where a question about the layout of its tensors has another answer: it is traced once more there.

`x if x.is_contiguous() else x.contiguous()` does not: both ways compute the same values. What two traces compute is compared without
the calls that change a layout alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from qcompiler.trace.layouts import Layout, in_order, order_of, strides_in
from qcompiler.trace.numbered import Numbered
from qcompiler.trace.other_sizes import Given, NotThisSize
from qcompiler.trace.questions import Question
from qcompiler.trace.relied import Relied
from qcompiler.trace.tracer import Tracer

Traced = tuple[Tracer, Sequence[fx.Node]]  # a trace, and its live nodes in order

_MOST = 48  # other traces of one model: with more, each answer counts


@dataclass
class OtherWays:
    """`made`: a trace; `again`: the same model, traced on other tensors by the name of the argument, None where it cannot be;
    NotThisSize where it does not run on them."""

    made: Traced
    again: Callable[[Mapping[str, torch.Tensor]], Traced | None]
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
            try:
                other = self.again(tensors)
            except NotThisSize:
                if len(tracer.given) == 1:
                    return False  # the model does not take it
                continue
            if other is None:
                continue
            laid = {name: tensor.stride() for name, tensor in other[0].given.values()}
            numbered, as_asked = Numbered(), all(laid.get(name) == tensor.stride() for name, tensor in tensors.items())
            return not as_asked or numbered.results(*self.made) != numbered.results(*other)
        return True


def _laid_out(tracer: Tracer, node: fx.Node, given: Given, alike: bool) -> torch.Tensor | None:
    """The example of an argument in the sizes and the layout of a run. `alike`: sizes that equal one that is changed are, too."""
    example = tracer.given[node][1]
    changed = {(dim, _size(tracer, at, dim)): size for (at, dim), size in given.sizes.items() if at in tracer.given}
    sizes = [given.sizes.get((node, dim), changed.get((dim, size), size) if alike else size) for dim, size in enumerate(example.shape)]
    layout: Layout | None = given.layouts.get(node)
    if layout is None and sizes == list(example.shape) and given.order is None:
        return None
    made = (layout or in_order(order_of(example)))(sizes, example.dtype)
    if given.order is not None and example.dim() >= 3:
        as_if = strides_in(given.order(example.dim()), sizes)
        strides = [other if n == 1 else own for n, own, other in zip(sizes, made.stride(), as_if, strict=True)]
        made = made.as_strided(sizes, strides)
    for dim, size in enumerate(sizes):
        example = example.index_select(dim, torch.arange(size) % max(example.shape[dim], 1))
    return made.copy_(example.detach())


def _size(tracer: Tracer, node: fx.Node, dim: int) -> int:
    return int(tracer.given[node][1].shape[dim])
