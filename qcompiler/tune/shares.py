"""Results that are shares of a softmax, judged by the values in front of it.

The shares of a sure row are near 0 and 1 however far off the values in front are, and those of an unsure row move a lot: dB of shares are
those of the few rows that are decided otherwise. `log p` less its mean over the row undoes a softmax, but for a constant that it takes no
notice of. So it is undone on the results themselves, and the float model, a graph and a built module are read alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, fx

from qcompiler.executable.call_forms import forms_of
from qcompiler.ir.types import quant_of, value_of
from qcompiler.ops.table import Table
from qcompiler.prepared.module import required_state

LEAST = 1e-30  # a share below, which is 69 less than the largest in front, is taken for 0: a mask's, or what float32 rounds to 0
SURE = 2.0**-24  # a sigmoid nearer to 0 or 1 is taken for that: float32 has no number between this and 1
SAME_ORDER = frozenset({"flatten", "reshape"})  # what exporters write around a softmax over the last axis
Pair: TypeAlias = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Shares:
    """By float result the name of the function that made it; empty where results are judged as they are.

    Sure, and undone, is what answers once a row: all float results are softmaxes of (rows, classes), or sigmoids of (rows, 1), which are
    softmaxes of two, in float. Maps and sequences have many answers a row, and shares beside other results a weight against them.
    """

    functions: tuple[str, ...] = ()

    @staticmethod
    def of(prepared: object) -> Shares:
        """Of a prepared model; none of one with several forms of the call."""
        forms = forms_of(prepared)
        if len(forms) != 1 or not isinstance(forms[0], fx.GraphModule):
            return AS_THEY_ARE
        table = required_state(forms[0]).settings.table
        found = [_function(leaf, table) for leaf in results_of(forms[0].graph)]
        return Shares(tuple(name for name in found if name is not None)) if all(found) else AS_THEY_ARE

    def undone(self, pairs: Sequence[Pair]) -> Sequence[Pair]:
        """What float results and others in their place were made of, in float64; -inf where the float result is taken for 0."""
        return [_UNDO[name](*pair) for name, pair in zip(self.functions, pairs, strict=True)] if self.functions else pairs

    def values(self, results: Sequence[Tensor]) -> Sequence[Tensor]:
        """The same of float results alone, with a gradient: 0 where there is no number."""
        if not self.functions:
            return results
        made = [one for one, _ in self.undone([(result, result) for result in results])]
        return [torch.where(one.isfinite(), one, 0.0) for one in made]

    def text(self) -> str:
        """What is judged in the place of the results; nothing where they are judged as they are."""
        return f"the values in front of the {self.functions[0]} that makes the results" if self.functions else ""


AS_THEY_ARE = Shares()


def results_of(graph: fx.Graph) -> Iterator[fx.Node]:
    """The nodes of the float results, in the order in which their tensors are compared."""
    for leaf in _leaves(next(node for node in graph.nodes if node.op == "output").args[0]):
        if not isinstance(leaf, fx.Node):
            continue
        dtype = value_of(leaf).dtype
        if dtype is None or dtype.is_floating_point:  # None: a container, or an object of the user's, that may hold floats
            yield leaf


def _leaves(made: object) -> Iterator[object]:
    if isinstance(made, (Mapping, tuple, list)):
        for item in made.values() if isinstance(made, Mapping) else made:
            yield from _leaves(item)
    else:
        yield made


def _function(result: fx.Node, table: Table) -> str | None:
    """The function that a result is surely one of, seen through what keeps its shape and order."""
    shape, node = value_of(result).shape, result
    if shape is None or len(shape) != 2:
        return None
    while (row := table.of(node)) is not None and row.name in SAME_ORDER:
        node = node.all_input_nodes[0]
        if value_of(node).shape != shape:
            return None
    if row is None or quant_of(node).int8:
        return None
    over_classes = row.name == "softmax" and node.kwargs.get("dim") in (1, -1)
    return row.name if over_classes or (row.name == "sigmoid" and shape[1] == 1) else None


def _of_softmax(expected: Tensor, got: Tensor) -> Pair:
    known = expected >= LEAST
    return _centred(expected, known), _centred(got, known)


def _centred(shares: Tensor, known: Tensor) -> Tensor:
    made = shares.double().clamp(min=LEAST).log()
    mean = torch.where(known, made, 0.0).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)
    return torch.where(known, made - mean, -torch.inf)


def _of_sigmoid(expected: Tensor, got: Tensor) -> Pair:
    return _logit(expected), _logit(got)


def _logit(share: Tensor) -> Tensor:
    return torch.logit(share.double().clamp(SURE, 1 - SURE))


_UNDO: Mapping[str, Callable[[Tensor, Tensor], Pair]] = {"softmax": _of_softmax, "sigmoid": _of_sigmoid}
