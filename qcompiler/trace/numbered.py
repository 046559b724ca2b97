"""What graphs compute, as numbers: equal ones for equal calls of equal values, whichever graph they stand in.

Calls that change the layout of a tensor alone are left out, and `view` is `reshape`.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Sequence

import torch
from torch import fx

from qcompiler.ops.reference import lay_out
from qcompiler.raw import raw_bits
from qcompiler.trace.fixed_sizes import name_of
from qcompiler.trace.guards import is_guard
from qcompiler.trace.tracer import Tracer

_LAYOUTS = ("contiguous", "clone", "to_format")


class Numbered:
    """The numbers of some graphs' values."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def results(self, tracer: Tracer, live: Sequence[fx.Node]) -> list[int]:
        """The numbers of what the live nodes of a trace are there for: results, guards, writes."""
        changed = {node.args[0] for node in live if node.target is operator.setitem}
        found: list[int] = []
        known: dict[fx.Node, int] = {}
        for node in live:
            first = node.args[0] if node.args else None
            if isinstance(first, fx.Node) and name_of(node.target) in _LAYOUTS and node not in changed:
                known[node] = known[first]
                continue
            known[node] = number = self._number(tracer, node, known)
            if node.target is operator.setitem and isinstance(first, fx.Node):
                known[first] = number
            elif not node.users and not _tells_ones(tracer, node):
                found.append(number)
        return found

    def _number(self, tracer: Tracer, node: fx.Node, known: dict[fx.Node, int]) -> int:
        target: Hashable = "reshape" if node.op == "call_method" and node.target == "view" else node.target
        if node.op == "get_attr" and (constant := tracer.attributes.constants.get(str(node.target))) is not None:
            target = _bits(constant)
        args = node.args[:2] if is_guard(node) else node.args  # without the text of its error
        said = (node.op, target, _said(args, known), _said(node.kwargs, known))
        return self._numbers.setdefault(said, len(self._numbers))


def _tells_ones(tracer: Tracer, node: fx.Node) -> bool:
    """Whether a guard is about a stride of 1: how a model goes on at dimensions of size 1 is seen there."""
    told = node.args[0] if is_guard(node) else None
    return isinstance(told, fx.Node) and len(told.args) == 2 and bool(told.args[1] == 1) and told.args[0] in tracer.of_strides


def _said(value: object, known: dict[fx.Node, int]) -> Hashable:
    if isinstance(value, fx.Node):
        if value not in known and value.target is lay_out:  # added since, for a guard
            return _said(value.args[0], known)
        return "node", known[value]
    if isinstance(value, (tuple, list)):
        return "items", *(_said(item, known) for item in value)
    if isinstance(value, dict):
        return "dict", *((key, _said(item, known)) for key, item in value.items())
    if isinstance(value, slice):
        return "slice", *(_said(part, known) for part in (value.start, value.stop, value.step))
    return type(value), repr(value)


def _bits(tensor: torch.Tensor) -> Hashable:
    return tensor.dtype, tuple(tensor.shape), raw_bits(tensor).numpy().tobytes()
