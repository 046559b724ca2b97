"""`for expert in mask.nonzero():` is a loop over all places where the mask may hold, with its body under the condition that it does.

hit = (expert_mask.sum((-1, -2)) > 0).nonzero()        for e in range(experts):
for e in hit:                                              if mask[e]:
    ...                                                        ...
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from qcompiler.ir.types import value_of
from qcompiler.trace import places
from qcompiler.trace.fixed_sizes import name_of
from qcompiler.trace.proxy import Proxy
from qcompiler.trace.recording import Recording
from qcompiler.trace.regions import Regions
from qcompiler.trace.statements import loop_at

_FLATTENS = ("squeeze", "flatten", "view", "reshape")


class HitList:
    """What `tolist()` of such a tensor gives: it can be looped over, no more."""

    def __init__(self, loop: Callable[[], Iterator[object]]) -> None:
        self._loop = loop

    def __iter__(self) -> Iterator[Any]:
        return self._loop()


class Hits:
    """Loops over the places where a mask holds."""

    def __init__(self, recorder: Recording, regions: Regions) -> None:
        self._recorder, self._regions = recorder, regions

    def hits(self, proxy: Proxy) -> Iterator[torch.Tensor] | None:
        """The loop over a tensor of such places; None where it is no such tensor."""
        mask = _mask_behind(proxy.node)
        shape = tuple(proxy.example.shape[1:])
        return None if mask is None or not self._is_known(mask) else self._loop(mask, lambda i: torch.full(shape, i))

    def hit_list(self, proxy: Proxy) -> HitList | None:
        mask = _mask_behind(proxy.node)
        make: Callable[[int], Any] = (lambda i: i) if proxy.example.dim() == 1 else (lambda i: [i])
        return None if mask is None or not self._is_known(mask) else HitList(lambda: self._loop(mask, make))

    def _is_known(self, mask: fx.Node) -> bool:
        return len(value_of(mask).shape or ()) == 1 and self._recorder.fixed_sizes.holds(mask, 0)

    def _loop(self, mask: fx.Node, make: Callable[[int], object]) -> Iterator[Any]:
        frame = places.calling_frame()
        branch = loop_at(frame) if frame is not None else None
        if branch is None or frame is None:
            raise self._recorder.error("a loop of a number of rounds that depends on data")
        shape, dtype = value_of(mask).shape or (), value_of(mask).dtype
        vector = Proxy(mask, self._recorder, torch.ones(shape, dtype=dtype))

        def rounds() -> Iterator[object]:
            for i in range(shape[0]):
                self._recorder.at_event()
                hit = self._recorder.record("call_function", operator.getitem, (vector, i), {})
                holds = self._recorder.record("call_function", bool, (hit,), {})
                place = make(i)
                self._regions.enter(branch, frame, holds)  # nothing may be recorded from here to the first statement of the body
                yield place

        return rounds()


def _mask_behind(node: fx.Node) -> fx.Node | None:
    """The vector whose places that are not zero a node lists, one in a row."""
    while name_of(node.target) in _FLATTENS and len(value_of(node).shape or ()) == 1:
        node = node.all_input_nodes[0]
    if node.target is operator.getitem and node.args[1] == 0:
        node = node.all_input_nodes[0]
    lists = name_of(node.target) in ("nonzero", "argwhere") or (name_of(node.target) == "where" and len(node.args) == 1)
    return node.all_input_nodes[0] if lists else None
